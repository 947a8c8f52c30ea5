name                  = "loop-staging"
domain                = "pay.staging.example.com"
admin_networks        = ["192.0.2.0/24"]
ssh_keys              = ["admin"]
web_count             = 1
server_types          = { web = "cx22", worker = "cx22", database = "cx22", redis = "cx22", openobserve = "cx22" }
database_volume_gb    = 10
openobserve_volume_gb = 10
is_protected          = false
