variable "name" {
  description = "What every resource's name begins with, such as loop-production."
  type        = string
}

variable "domain" {
  description = "The host that customers' browsers reach Loop by; its DNS zone must be at Hetzner for the certificate."
  type        = string
}

variable "admin_networks" {
  description = "The networks that may reach the servers by SSH."
  type        = list(string)
  validation {
    condition     = length(var.admin_networks) > 0 && !contains(var.admin_networks, "0.0.0.0/0")
    error_message = "Name the networks of your administrators, not everybody's."
  }
}

variable "ssh_keys" {
  description = "Names of SSH keys that the Hetzner project has."
  type        = list(string)
}

variable "location" {
  description = "Where the servers are."
  type        = string
  default     = "fsn1"
}

variable "network_zone" {
  description = "The zone of that location."
  type        = string
  default     = "eu-central"
}

variable "web_count" {
  description = "How many servers run the API and the dashboard. One is enough to try; two outlive the loss of one."
  type        = number
  validation {
    condition     = var.web_count >= 1 && var.web_count <= 9
    error_message = "From 1 to 9."
  }
}

variable "server_types" {
  description = "The size of each kind of server."
  type        = object({ web = string, worker = string, database = string, redis = string, openobserve = string })
}

variable "load_balancer_type" {
  description = "The size of the load balancer."
  type        = string
  default     = "lb11"
}

variable "database_volume_gb" {
  description = "Size of the volume that PostgreSQL writes to."
  type        = number
}

variable "openobserve_volume_gb" {
  description = "Size of the volume that OpenObserve keeps spans and metrics on."
  type        = number
}

variable "is_protected" {
  description = "Whether the database's server and volume, and the load balancer, refuse to be deleted."
  type        = bool
}
