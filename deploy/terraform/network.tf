resource "hcloud_network" "loop" {
  name     = var.name
  ip_range = "10.20.0.0/16"
}

resource "hcloud_network_subnet" "loop" {
  network_id   = hcloud_network.loop.id
  type         = "cloud"
  network_zone = var.network_zone
  ip_range     = "10.20.1.0/24"
}

# Of the public addresses, nothing but SSH and that for administrators: web servers are reached through the load
# balancer. Hetzner's firewalls do not filter the private network, to which only these servers are attached.
resource "hcloud_firewall" "loop" {
  name = var.name

  rule {
    description = "SSH for administrators"
    direction   = "in"
    protocol    = "tcp"
    port        = "22"
    source_ips  = var.admin_networks
  }

  rule {
    description = "Path MTU discovery, and ping"
    direction   = "in"
    protocol    = "icmp"
    source_ips  = ["0.0.0.0/0", "::/0"]
  }
}
