resource "hcloud_load_balancer" "loop" {
  name               = var.name
  load_balancer_type = var.load_balancer_type
  location           = var.location
  delete_protection  = var.is_protected
}

resource "hcloud_load_balancer_network" "loop" {
  load_balancer_id = hcloud_load_balancer.loop.id
  subnet_id        = hcloud_network_subnet.loop.id
  ip               = "10.20.1.10"
}

resource "hcloud_load_balancer_target" "web" {
  for_each = { for name, server in local.servers : name => server if server.kind == "web" }

  type             = "server"
  load_balancer_id = hcloud_load_balancer.loop.id
  server_id        = hcloud_server.loop[each.key].id
  use_private_ip   = true
  depends_on       = [hcloud_load_balancer_network.loop]
}

resource "hcloud_managed_certificate" "loop" {
  name         = var.name
  domain_names = [var.domain]
}

resource "hcloud_load_balancer_service" "https" {
  load_balancer_id = hcloud_load_balancer.loop.id
  protocol         = "https"
  listen_port      = 443
  destination_port = 80 # Kamal's proxy

  http {
    certificates  = [hcloud_managed_certificate.loop.id]
    redirect_http = true
  }

  health_check {
    protocol = "http"
    port     = 80
    interval = 5
    timeout  = 4
    retries  = 2
    http {
      path         = "/health/ready"
      status_codes = ["200"]
    }
  }
}
