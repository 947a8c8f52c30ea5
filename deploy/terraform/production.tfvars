name                  = "loop-production"
domain                = "pay.example.com"
admin_networks        = ["192.0.2.0/24"]
ssh_keys              = ["admin"]
web_count             = 2
server_types          = { web = "ccx13", worker = "ccx13", database = "ccx23", redis = "cx23", openobserve = "cx33" }
load_balancer_type    = "lb11"
database_volume_gb    = 100
openobserve_volume_gb = 50
is_protected          = true
