#!/bin/bash
# Make a Debian machine one of the lab's three: provision.sh ROLE INTERFACE=MAC...
# ROLE is client, censor or internet. May be run again; `vagrant provision` does.
set -euo pipefail

role=${1:?usage: provision.sh ROLE INTERFACE=MAC...}
shift
checkout=/vagrant
topology=${GFWEMU_TOPOLOGY:-default}
python=$checkout/.venv/bin/python
cd "$checkout"

# The package registries are behind the management interface, the lab is not.
systemctl stop gfwemu-network.service 2>/dev/null || true
GFWEMU_SETUP=lab lab/setup

name_interfaces() {
    local pair name mac link
    for pair in "$@"; do
        name=${pair%%=*}
        mac=${pair#*=}
        printf '[Match]\nMACAddress=%s\n\n[Link]\nName=%s\n' "$mac" "$name" >"/etc/systemd/network/10-gfwemu-$name.link"
        for link in /sys/class/net/*; do
            if [ "$(<"$link/address")" = "$mac" ] && [ "${link##*/}" != "$name" ]; then
                ip address flush dev "${link##*/}"
                ip link set "${link##*/}" down name "$name"
            fi
        done
        [ -e "/sys/class/net/$name" ] || { echo "provision: no interface has the address $mac" >&2; exit 1; }
    done
}

start() {
    local unit
    for unit in "$@"; do
        install -m 0644 "lab/vagrant/units/$unit.service" /etc/systemd/system/
    done
    systemctl daemon-reload
    systemctl -q enable "$@"
    systemctl restart "$@"
}

mkdir -p /etc/gfwemu /etc/systemd/network /var/lib/gfwemu
name_interfaces "$@"
files=$("$python" lab/vagrant/network.py files "$role" "$topology")
printf '%s\n' "GFWEMU_ROLE=$role" "GFWEMU_TOPOLOGY=$topology" "GFWEMU_FILES=$files" >/etc/gfwemu/lab.env
start gfwemu-network
ln -sf "$checkout/.venv/bin/gfwemu" /usr/local/bin/gfwemu

case $role in
internet)
    "$python" lab/vagrant/network.py plan "$role" "$topology" >/var/lib/gfwemu/plan.json
    start gfwemu-internet gfwemu-files
    ;;
censor)
    ln -sf "$checkout/lab/vagrant/use-profile" "$checkout/lab/vagrant/show-events" /usr/local/bin/
    read -ra rules <<<"${GFWEMU_RULES:-ip-blacklist dns-poison sni-reset}"
    lab/vagrant/use-profile --write "${rules[@]}"
    start gfwemu-censor
    ;;
client)
    lab/vagrant/trust "http://$files:8080"
    ;;
*)
    echo "provision: no such role: $role" >&2
    exit 2
    ;;
esac
echo "provision: this machine is the lab's $role"
