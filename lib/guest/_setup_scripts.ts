/**
 * The shell scripts that make a guest ready for commands. They are fixed texts,
 * as those that run commands.
 *
 * @module
 */

/** Where a guest has noted that its kernel has no 9p, to be saved with it. */
export const NO_9P = "/run/toolsmith.no-9p";

/** No directory has this tag: a kernel with 9p says so, one without has other words. */
export const PROBE_TAG = "toolsmith.probe";

/** Tells a kernel without 9p: a directory that is not there yet has other words. */
const WITHOUT_9P = '*"No such device"* | *"unknown filesystem"*';

/**
 * Sets the clock and mounts directories of the host. Arguments: the time in seconds
 * since 1970, exact and rounded, or two empty words; then three a directory: tag,
 * place, `ro` or `rw`. A device needs a moment after it was plugged in. All are
 * mounted, or none, and it prints why.
 */
export const SETUP_SCRIPT = `
clock() {
  date -u -s "@$1" || date -u -s "@$2"
} >/dev/null 2>&1
# Another processor can do that meanwhile.
{ [ -z "$1" ] || clock "$1" "$2" || echo clock; } &
shift 2
mounted=
fail() {
  echo "$1"
  wait
  [ -z "$mounted" ] || umount -l $mounted
  exit 1
}
[ $# -eq 0 ] || ! read -r said 2>/dev/null <${NO_9P} || fail "$1: $said"
while [ $# -gt 0 ]; do
  [ -d "$2" ] || mkdir -p "$2" || fail "$2 cannot be made"
  tries=0
  until said=$(mount -t 9p -o "trans=virtio,version=9p2000.L,msize=1048576,$3" "$1" "$2" 2>&1); do
    tries=$((tries + 1))
    case $said in
    ${WITHOUT_9P}) tries=60 ;;
    *) [ "$1" != ${PROBE_TAG} ] || break ;;
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
 * Waits until a guest has nothing left to start, makes it load what each command
 * needs, and notes where its kernel has no 9p. Arguments: how long to wait, in
 * seconds; then two a directory: tag and place. Whatever else fails here has its
 * say later.
 */
export const PREPARE_SCRIPT = `
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
    ${WITHOUT_9P}) echo "$said" >${NO_9P} ;;
    esac
  fi
  shift 2
done
date
sleep 0
: | setsid cat | dd count=0
# A new mount is an event for its device manager, too.
command -v udevadm && udevadm settle --timeout=5
`;
