# A worker on every client that has a GPU.
#
#     nomad var put nomad/jobs/mloc-workers join_token=@join.token
#     nomad job run -var 'seeds=[…as the seeds have it…]' -var gpus=1 workers.nomad.hcl
#
# A device request names a fixed number, and mloc is to have all GPUs of its machine: run the job once for each kind of
# machine, with `gpus` and `node_class` to suit.

variable "image" {
  type    = string
  default = "registry.example.org/mloc:0.1.0-cuda"
}

variable "seeds" {
  type    = list(string)
  default = ["seed-1.example.org:7946", "seed-2.example.org:7946", "seed-3.example.org:7946"]
}

variable "gpus" {
  type    = number
  default = 1
}

variable "node_class" {
  type    = string
  default = "gpu"
}

# What the node offers to tasks, in MHz and MiB.
variable "cpu" {
  type    = number
  default = 8000
}

variable "memory" {
  type    = number
  default = 32768
}

job "mloc-workers" {
  type = "system"

  constraint {
    attribute = "${node.class}"
    value     = var.node_class
  }

  update {
    max_parallel = 1
  }

  group "worker" {
    # The host's own network: other members dial these ports.
    network {
      mode = "host"
      port "gossip" {
        static = 7946
      }
      port "links" {
        static = 7947
      }
      port "rest" {
        static = 7948
      }
    }

    # Identity, journal and cache of models stay on the machine. A host volume of the client's configuration, owned by
    # 65532.
    volume "data" {
      type   = "host"
      source = "mloc"
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    service {
      name     = "mloc-rest"
      provider = "nomad"
      port     = "rest"

      # Where requests go.
      check {
        name     = "ready"
        type     = "http"
        path     = "/readyz"
        interval = "10s"
        timeout  = "5s"
      }

      # Whether the process lives: one that waits for its seeds does, and is not started again.
      check {
        name     = "alive"
        type     = "http"
        path     = "/healthz"
        interval = "10s"
        timeout  = "5s"

        check_restart {
          limit = 6
          grace = "60s"
        }
      }
    }

    task "mloc" {
      driver = "docker"
      user   = "65532"

      # Attempts have 10 s for a last checkpoint. Nomad's own default is SIGINT and 5 s; the client's max_kill_timeout is
      # 30 s unless it says more.
      kill_signal  = "SIGTERM"
      kill_timeout = "60s"

      config {
        image           = var.image
        network_mode    = "host"
        args            = ["up", "--config", "${NOMAD_TASK_DIR}/node.yaml"]
        cap_drop        = ["all"]
        security_opt    = ["no-new-privileges"]
        readonly_rootfs = true
      }

      env {
        MLOC_NAME       = "${node.unique.name}"
        MLOC_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/join.token"
      }

      volume_mount {
        volume      = "data"
        destination = "/var/lib/mloc"
      }

      # A running node reads its file again; what needs a restart its log says.
      template {
        destination   = "${NOMAD_TASK_DIR}/node.yaml"
        change_mode   = "signal"
        change_signal = "SIGHUP"
        data          = <<-EOT
          rest:
            bind: 0.0.0.0:7948
          seeds: ${jsonencode(var.seeds)}
          role:
            # Machines come and go: the seeds keep the ledger.
            vote: never
        EOT
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/join.token"
        change_mode = "noop"
        uid         = 65532
        gid         = 65532
        perms       = "0400"
        data        = "{{ with nomadVar \"nomad/jobs/mloc-workers\" }}{{ .join_token }}{{ end }}"
      }

      resources {
        cpu    = var.cpu
        memory = var.memory

        device "nvidia/gpu" {
          count = var.gpus
        }
      }
    }
  }
}
