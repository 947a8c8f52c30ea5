output "load_balancer_address" {
  description = "What the domain's A record names."
  value       = hcloud_load_balancer.loop.ipv4
}

output "servers" {
  description = "The addresses that deploy/kamal/deploy.yml names: public for SSH, private for what Loop speaks to."
  value = {
    for name, server in hcloud_server.loop : name => { public = server.ipv4_address, private = local.servers[name].ip }
  }
}

output "openobserve_folder" {
  description = "Where OpenObserve's server has mounted its volume."
  value       = "/mnt/HC_Volume_${hcloud_volume.openobserve.id}"
}

output "database_folder" {
  description = "Where the database's server has mounted its volume."
  value       = "/mnt/HC_Volume_${hcloud_volume.database.id}"
}
