# The base image for agents that has what mngr needs in every container, so that no create has to install it.
ARG BASE
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates curl git jq openssh-server rsync tmux xxd \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
