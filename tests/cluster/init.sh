#!/usr/bin/env bash
# init.sh STATE [NODE ADDRESS [PODS HUB HUB_ADDRESS]]: the parent of every component of a cluster, or
# of a node. When it ends, all of them end.
# With a node's name it is PID 1 of a new mount, network, PID, UTS and IPC namespace, so that nothing
# it does reaches the machine, and the kernel ends whatever was started on the node. A node that joins
# another one's network is given its own pods' addresses, and the other's namespace and address.
set -euo pipefail
state=$1 node=${2:-} address=${3:-} pods=${4:-} hub=${5:-} hub_address=${6:-} run=$1/run
export PATH=$run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

become_node() {
  hostname "$node"
  ip link set lo up
  if [ -n "$hub" ]; then lead_to_hub; else lead_nowhere; fi   # $hub is a path in the machine's /proc
  mount -t proc proc /proc
  mount --make-rshared /             # kubelet and CNI want mounts to propagate
  mount -t tmpfs tmpfs /run          # sockets, network namespaces, containerd's state
  mkdir -p "$run/kubelet" "$state/log/pods" /var/lib/kubelet
  mount --bind "$run/kubelet" /var/lib/kubelet
  mount --bind "$state/log" /var/log
  [ -n "$hub" ] || mount -t tmpfs -o size=2g,mode=700 tmpfs "$run/etcd"

  # kubelet insists on these settings of the whole machine and would write them: show it files
  # that hold what it wants.
  mkdir /run/sysctl
  local setting name
  for setting in vm/overcommit_memory=1 kernel/panic=10 kernel/panic_on_oops=1; do
    name=${setting%=*}
    echo "${setting#*=}" >"/run/sysctl/${name##*/}"
    mount --bind "/run/sysctl/${name##*/}" "/proc/sys/$name"
  done

  mount --bind "$run/etc/hosts" /etc/hosts
  mount --bind "$run/etc/resolv.conf" /etc/resolv.conf

  echo 1 >/proc/sys/net/ipv4/ip_forward
  echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
}

lead_nowhere() {
  ip link add eth0 type veth peer name eth0-end   # some kernels have no dummy device
  ip addr add "$address/24" dev eth0
  ip link set eth0 up
  ip link set eth0-end up
  # Without a route connect() to a ClusterIP fails before it is translated.
  ip route add default dev eth0
}

lead_to_hub() {
  on_hub() { nsenter --net="$hub" ip "$@"; }
  on_hub link delete "$node" 2>/dev/null || true   # of a node of that name that has just ended
  ip link add eth0 type veth peer name "$node" netns "$hub"
  ip addr add "$address/32" dev eth0
  ip link set eth0 up
  ip route add "$hub_address" dev eth0 src "$address"
  ip route add default via "$hub_address"
  on_hub link set "$node" up
  on_hub route add "$address" dev "$node" src "$hub_address"
  on_hub route add "$pods" via "$address"
}

# Who this is, as the machine counts (it is still its /proc): pid, start time, boot.
read -r -a stat </proc/self/stat
echo "${stat[0]} ${stat[21]} $(</proc/sys/kernel/random/boot_id)" >"$run/init"
[ -z "$node" ] || become_node

exec 3<>"$run/control"               # also a writer: the pipe never ends
: >"$run/ready"
while read -r component <&3; do
  # Die with this shell, whatever ends it; kubelet's and etcd's children are in the namespace.
  setpriv --pdeathsig KILL "$run/components/$component" >>"$state/log/$component.log" 2>&1 &
done
