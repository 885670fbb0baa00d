#!/bin/sh
# Record the hellos of real programs, in namespaces of this script's own: nothing leaves the machine.
# Usage: record.sh OUTPUT-DIRECTORY [PYTHON]   PYTHON has aioquic and trustme.
set -eu

if [ "${3:-}" != inside ]; then
    exec unshare --user --map-root-user --net --mount --pid --fork --kill-child -- "$0" "$1" "${2:-python3}" inside
fi

directory=$1
python=$2
here=$(dirname "$0")
name=www.example.test

ip link set lo up mtu 1500
ip address add 192.0.2.1/32 dev lo
ip address add 198.51.100.2/32 dev lo
ip -6 address add 2001:db8::2/128 dev lo
mount -t tmpfs none /run
printf '198.51.100.2 %s\n' "$name" >/run/hosts
mount --bind /run/hosts /etc/hosts

# record FILE FILTER COMMAND...: what the command sends and gets, until it ends.
record() {
    file=$1 filter=$2
    shift 2
    rm -f /run/recorder
    dumpcap -q -i lo -f "$filter" -P -w "$directory/$file" 2>/run/recorder &
    recorder=$!
    until grep -qs '^File: ' /run/recorder; do sleep 0.1; done
    timeout 20 "$@" >/run/output 2>&1 </dev/null || true
    sleep 1
    kill "$recorder"
    wait "$recorder" || true
}

"$python" "$here/servers.py" "$name" /run &
until [ -e /run/ready ]; do sleep 0.1; done

record tls-curl.pcap 'tcp port 443' curl -s --cacert /run/ca.pem "https://$name/"
record tls-openssl.pcap 'tcp port 443' openssl s_client -connect '[2001:db8::2]:443' -servername "$name" -alpn h2
record tls-openssl-tls12-no-sni.pcap 'tcp port 443' openssl s_client -connect 198.51.100.2:443 -tls1_2 -noservername
record tls-wget.pcap 'tcp port 443' wget -q -O - --ca-certificate=/run/ca.pem "https://$name/"
record tls-node.pcap 'tcp port 443' node -e "require('https').get('https://$name/').on('error', () => {})"
record tls-python.pcap 'tcp port 443' "$python" "$here/clients.py" tls "$name"
record http-curl.pcap 'tcp port 80' curl -s "http://$name/index.html"
for kind in quic-v1 quic-v2 quic-retry quic-long; do
    record "$kind.pcap" 'udp' "$python" "$here/clients.py" "$kind" "$name"
done
