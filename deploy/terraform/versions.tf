terraform {
  required_version = ">= 1.6"
  required_providers {
    hcloud = {
      source  = "hetznercloud/hcloud"
      version = "~> 1.52"
    }
  }
}

# The token comes from the environment (HCLOUD_TOKEN), so that it is in no file and not in the state.
provider "hcloud" {}
