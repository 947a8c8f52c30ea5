locals {
  # A further kind of server is a further line here, with addresses of its own.
  servers = merge(
    { for n in range(var.web_count) : "web-${n + 1}" => { kind = "web", ip = "10.20.1.${11 + n}" } },
    { database = { kind = "database", ip = "10.20.1.21" } },
    { redis = { kind = "redis", ip = "10.20.1.22" } },
    { worker = { kind = "worker", ip = "10.20.1.31" } },
    { openobserve = { kind = "openobserve", ip = "10.20.1.41" } },
  )
}

# Two web servers are on two machines.
resource "hcloud_placement_group" "web" {
  name = "${var.name}-web"
  type = "spread"
}

resource "hcloud_server" "loop" {
  for_each = local.servers

  name               = "${var.name}-${each.key}"
  image              = "debian-12"
  server_type        = var.server_types[each.value.kind]
  location           = var.location
  ssh_keys           = var.ssh_keys
  firewall_ids       = [hcloud_firewall.loop.id]
  placement_group_id = each.value.kind == "web" ? hcloud_placement_group.web.id : null
  user_data          = file("${path.module}/cloud-init.yaml")
  backups            = each.value.kind == "database"
  delete_protection  = var.is_protected && each.value.kind == "database"
  rebuild_protection = var.is_protected && each.value.kind == "database"
  labels             = { loop = var.name, kind = each.value.kind }

  network {
    network_id = hcloud_network.loop.id
    ip         = each.value.ip
  }

  lifecycle {
    # Hetzner renames images and keys are changed on the servers: neither is a reason to make a server anew.
    ignore_changes = [image, ssh_keys, user_data]
  }

  depends_on = [hcloud_network_subnet.loop]
}

resource "hcloud_volume" "openobserve" {
  name      = "${var.name}-openobserve"
  size      = var.openobserve_volume_gb
  server_id = hcloud_server.loop["openobserve"].id
  format    = "ext4"
  automount = true
}

resource "hcloud_volume" "database" {
  name              = "${var.name}-database"
  size              = var.database_volume_gb
  server_id         = hcloud_server.loop["database"].id
  format            = "ext4"
  automount         = true
  delete_protection = var.is_protected
}
