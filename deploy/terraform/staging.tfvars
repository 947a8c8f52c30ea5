name                  = "loop-staging"
domain                = "pay.staging.example.com"
admin_networks        = ["192.0.2.0/24"]
ssh_keys              = ["admin"]
web_count             = 1
server_types          = { web = "cx23", worker = "cx23", database = "cx23", redis = "cx23", openobserve = "cx23" }
database_volume_gb    = 10
openobserve_volume_gb = 10
is_protected          = false
