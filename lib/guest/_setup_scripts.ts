/**
 * The shell scripts that prepare a guest for commands. They are constant, as those
 * that run commands.
 */

/** Waits until cloud-init has finished, if systemd has enabled it. */
export const WAIT_FOR_CLOUD_INIT_SCRIPT =
  "[ -e /run/cloud-init/enabled ] || exit 0; until [ -e /run/cloud-init/result.json ]; do sleep 0.2; done";

/** Guest file that records a kernel without 9p; saved with the snapshot. */
export const NO_9P_GUEST_PATH = "/run/toolsmith.no-9p";

/** No share has this tag: the mount error tells whether the kernel has 9p. */
export const PROBE_9P_TAG = "toolsmith.probe";

/** Mount errors of a kernel without 9p, as a shell pattern. */
const NO_9P_ERROR_PATTERN = '*"No such device"* | *"unknown filesystem"*';

/**
 * Sets the clock, configures a network card and mounts host directories. Arguments: the
 * time in seconds since 1970, exact and rounded, or two empty strings; a card's MAC,
 * address, prefix length, mask, gateway and only DNS server, if there is one, in one
 * string, or an empty one; then for each directory its tag, mount point, and `ro` or `rw`.
 * Retries while a hot-plugged device is not ready, or udev renames it. Mounts all
 * directories, or none and prints the error.
 */
export const SET_UP_GUEST_SCRIPT = `
clock() {
  date -u -s "@$1" || date -u -s "@$2"
} >/dev/null 2>&1
# The gateway answers for any server's address, except for one in the guest; QEMU's own
# network answers at one address.
has_name_server() {
  while read -r key value || [ -n "$key" ]; do
    case "$key $value" in
    nameserver\\ 127.*) ;;
    nameserver\\ "$1"*) return ;;
    esac
  done
  return 1
}
rename() {
  # Otherwise the kernel waits until each processor has been idle.
  expedited=/sys/kernel/rcu_expedited
  read -r before <$expedited && echo 1 >$expedited
  ip link set "$1" name toolsmith0 up
  set -- $?
  [ -z "$before" ] || echo "$before" >$expedited
  return "$1"
} 2>/dev/null
find_card() {
  for dir in /sys/class/net/*; do
    read -r mac <"$dir/address" && [ "$mac" = "$1" ] && return
  done 2>/dev/null
  return 1
}
# By the shell itself: a process takes time from those that configure the card.
has_default_route() {
  while read -r card destination rest; do
    [ "$card $destination" != "$1 00000000" ] || return 0
  done </proc/net/route
  return 1
}
configure() {
  find_card "$1" || {
    echo "no card $1"
    return 1
  }
  name=\${dir##*/} links=/run/systemd/netif/links state= is_up=
  # systemd-networkd would remove what it has not configured. It asks by DHCP.
  if [ -e $links/1 ] && [ "$tries" -lt 100 ]; then
    read -r index <"$dir/ifindex"
    while read -r state; do
      case $state in ADMIN_STATE=*) break ;; esac
    done <"$links/$index"
    case $state in
    *=configured) return 0 ;;
    *=unmanaged | *=failed) ;;
    # It goes on to wait for a router of IPv6.
    *) has_default_route "$name"; return ;;
    esac
  fi
  if command -v ip >/dev/null; then
    # Time for udev to rename the card, which it cannot do once the card is up.
    [ ! -e /run/udev/control ] || [ "$tries" -gt 0 ] || return 1
    # A DHCP client that waits for eth0 would begin by removing its address. If the card
    # cannot be renamed, such a client has it already.
    if [ -e /run/udev/control ] || [ "$name" = toolsmith0 ] || [ "$tries" -ge 100 ] ||
      { rename "$name" && name=toolsmith0 is_up=1; }; then
      { [ -n "$is_up" ] || ip link set "$name" up; } &&
        { ip addr add "$2/$3" dev "$name" || :; } &&
        ip route replace default via "$5" dev "$name" || return
    else
      has_default_route "$name" || return
    fi
  else
    ifconfig "$name" "$2" netmask "$4" up && route add default gw "$5" || return
  fi
  has_name_server "$6" </etc/resolv.conf || resolvectl dns "$name" "\${6:-$5}" || {
    [ ! -h /etc/resolv.conf ] || rm -f /etc/resolv.conf
    echo "nameserver \${6:-$5}" >/etc/resolv.conf
  }
}
network() {
  tries=0
  # The kernel finds the card in less time than a process takes.
  until find_card "$1" || [ "$tries" -eq 300 ]; do tries=$((tries + 1)); done
  tries=0
  until configure "$@" >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 120 ] || { said=$(configure "$@" 2>&1) || echo network: $said; return; }
    sleep 0.05 2>/dev/null || { sleep 1; tries=$((tries + 19)); }
  done
}
# At once, as all processors are idle.
[ -z "$3" ] || network $3 &
[ -z "$1" ] || clock "$1" "$2" || echo clock &
shift 3
mounted=
fail() {
  echo "$1"
  wait
  [ -z "$mounted" ] || umount -l $mounted
  exit 1
}
[ $# -eq 0 ] || ! read -r said 2>/dev/null <${NO_9P_GUEST_PATH} || fail "$1: $said"
while [ $# -ge 3 ]; do
  [ -d "$2" ] || mkdir -p "$2" || fail "$2 cannot be made"
  tries=0
  until said=$(mount -t 9p -o "trans=virtio,version=9p2000.L,msize=1048576,$3" "$1" "$2" 2>&1); do
    tries=$((tries + 1))
    case $said in
    ${NO_9P_ERROR_PATTERN}) tries=60 ;;
    *) [ "$1" != ${PROBE_9P_TAG} ] || break ;;
    esac
    [ "$tries" -lt 60 ] || fail "$1: $said"
    sleep 0.05 2>/dev/null || sleep 1
  done
  mounted="$mounted $2"
  shift 3
done
wait
`;

/**
 * Waits until systemd has started all units, loads the programs that each command
 * needs and what a network card needs, and records a kernel without 9p. Arguments: the
 * wait in seconds; then tag and mount point of each directory. Other failures show up
 * in later commands.
 */
export const PREPARE_SNAPSHOT_SCRIPT = `
exec >/dev/null 2>&1
command -v systemctl && timeout "$1" systemctl is-system-running --wait
shift
while [ $# -gt 0 ]; do
  mkdir -p "$2"
  # A mounted directory would keep the machine from being saved.
  if said=$(mount -t 9p -o trans=virtio,version=9p2000.L,ro "$1" "$2" 2>&1); then
    umount "$2"
  else
    case $said in
    ${NO_9P_ERROR_PATTERN}) echo "$said" >${NO_9P_GUEST_PATH} ;;
    esac
  fi
  shift 2
done
modprobe virtio_net
ip link
date
sleep 0
: | setsid cat | dd count=0
# A new mount is an event for its device manager, too.
command -v udevadm && udevadm settle --timeout=5
`;
