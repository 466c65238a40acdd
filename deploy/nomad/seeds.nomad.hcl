# Three seeds, one on each of three clients that are known by name.
#
#     nomad var put nomad/jobs/mloc-seeds join_token=@join.token
#     nomad job run -var 'seeds=["a.example.org:7946","b.example.org:7946","c.example.org:7946"]' seeds.nomad.hcl

variable "image" {
  type    = string
  default = "registry.example.org/mloc:0.1.0"
}

# The hosts' own addresses: these must be the clients whose meta says mloc_seed, and the same list in both jobs.
variable "seeds" {
  type    = list(string)
  default = ["seed-1.example.org:7946", "seed-2.example.org:7946", "seed-3.example.org:7946"]
}

job "mloc-seeds" {
  type = "service"

  constraint {
    attribute = "${meta.mloc_seed}"
    value     = "true"
  }

  # One at a time: two voters of three are a majority.
  update {
    max_parallel     = 1
    health_check     = "checks"
    min_healthy_time = "30s"
    healthy_deadline = "10m"
  }

  group "seed" {
    count = 3

    # Two seeds on one machine are one failure that takes the majority.
    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    # The host's own network: other members dial these ports at the address that a seed's name resolves to.
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

    # Key and ledger stay on the machine. A host volume of the client's configuration, owned by 65532.
    volume "data" {
      type   = "host"
      source = "mloc"
    }

    # A voter is not started elsewhere when its machine is silent: its data is there.
    reschedule {
      attempts  = 0
      unlimited = false
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

      # Nomad's own default is SIGINT and 5 s. The client's max_kill_timeout is 30 s unless it says more.
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
          bootstrapExpect: 3
          role:
            # A task that outgrows the memory below makes the kernel end what is in here: no work beside a vote.
            work: false
        EOT
      }

      template {
        destination = "${NOMAD_SECRETS_DIR}/join.token"
        change_mode = "noop"
        uid         = 65532
        gid         = 65532
        perms       = "0400"
        data        = "{{ with nomadVar \"nomad/jobs/mloc-seeds\" }}{{ .join_token }}{{ end }}"
      }

      resources {
        cpu    = 500
        memory = 1024
      }
    }
  }
}
