/**
 * The shell scripts that run commands in the guest. They are constant: values are
 * passed as arguments, so that no shell evaluates them as code. They need a POSIX
 * shell, `cat`, `dd`, `sleep` and, to end whole process groups, `setsid`; a
 * terminal needs `setsid -c` and `stty`.
 */

import { SET_UP_GUEST_SCRIPT } from "./_setup_scripts.ts";

/** Pauses before a retry; exits after 300 retries. */
const RETRY_FUNCTION = `
again() {
  tries=$((tries + 1))
  [ "$tries" -lt 300 ] || exit 1
  sleep 0.03 2>/dev/null || sleep 1
}
`;

/** Reads the end marker, once the host is connected. */
const READ_END_MARKER = `${RETRY_FUNCTION}
tries=0
until read -r end <&8; do again; done
`;

/** Prefixed variable names leave all others to the command. */
const EXEC_COMMAND_SCRIPT = `
exec 8<&-
echo "pid $$ $end"
toolsmith_end=$end
exec >&4 2>&9 4>&- 9>&-
toolsmith_directory=$1 toolsmith_otherwise=$2 toolsmith_count=$3
shift 3
fail() {
  printf '%s%s\\n' "$toolsmith_end" "$1" >&6
  exit "$2"
}
: "\${HOME:=/root}" "\${PATH:=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export HOME PATH
while [ "$toolsmith_count" -gt 0 ]; do
  export "$1"
  shift
  toolsmith_count=$((toolsmith_count - 1))
done
cd -- "$toolsmith_directory" 2>/dev/null || cd -- "$toolsmith_otherwise" 2>/dev/null ||
  fail D 126
toolsmith_program=
case $1 in
*/*) toolsmith_program=$1 ;;
*)
  toolsmith_rest=$PATH:
  while [ -n "$toolsmith_rest" ]; do
    toolsmith_place=\${toolsmith_rest%%:*}
    toolsmith_rest=\${toolsmith_rest#*:}
    if [ -f "\${toolsmith_place:-.}/$1" ] && [ -x "\${toolsmith_place:-.}/$1" ]; then
      toolsmith_program=\${toolsmith_place:-.}/$1
      break
    fi
  done
  ;;
esac
[ -n "$toolsmith_program" ] && [ -e "$toolsmith_program" ] || fail N 127
[ ! -d "$toolsmith_program" ] && [ -x "$toolsmith_program" ] || fail A 126
shift
exec "$toolsmith_program" "$@" 6>&-
`;

/**
 * Sets environment and directory, finds the command on PATH and executes it.
 * Arguments: directory, fallback directory, count of variables, the variables as
 * `NAME=value`, the command, its arguments. First writes process id and end marker
 * to standard output. Descriptors 4 and 9 are the command's output, 6 goes to the
 * host, 8 delivers the end marker.
 */
export const START_COMMAND_SCRIPT = READ_END_MARKER + EXEC_COMMAND_SCRIPT;

/**
 * Like {@linkcode START_COMMAND_SCRIPT}, but waits for its arguments, so that the guest can
 * be saved meanwhile. Argument: the process id of the shell around it. The host
 * sends any number of setup requests, each with the arguments of
 * {@linkcode SET_UP_GUEST_SCRIPT}; then the command request: "yes" or "no" for stdin and
 * the arguments above. A request is a line with its kind, `setup` or `command`, its
 * argument count and the end marker, then a line for each argument, with `\\0` and
 * three octal digits for each unprintable byte. The script sends a ready line; after
 * each setup its output, the end marker, status and process id; and a ready line when
 * the command request has arrived.
 */
export const WARM_SHELL_SCRIPT = `
setup() (
${SET_UP_GUEST_SCRIPT})
shell=$1
# Until another process has ended, those that were started with this one rest, too.
sleep 0.1 2>/dev/null || sleep 1
echo ready >&6
${RETRY_FUNCTION}
tries=0
while :; do
  until read -r kind count end <&8; do again; done
  set --
  while [ "$count" -gt 0 ]; do
    IFS= read -r word <&8 || exit
    case $word in
    *\\\\*) word=$(printf '%b_' "$word") word=\${word%_} ;;
    esac
    set -- "$@" "$word"
    count=$((count - 1))
  done
  [ "$kind" = setup ] || break
  setup "$@" >&6 2>/dev/null
  echo "$end$? $shell" >&6
done
# Where nobody takes this, another shell has got the command.
echo ready >&6 || exit
[ "$1" = yes ] || exec </dev/null
shift
${EXEC_COMMAND_SCRIPT}`;

/**
 * Runs the command with the script above on the caller's streams and writes both
 * end markers. The command runs in the foreground, since shells report a signal
 * only then, on the pipe that carries process id and status (bash only outside its
 * POSIX mode). Descriptor 6 delivers signal names, and sizes of a terminal.
 */
export const LAUNCH_FUNCTION = `
launch() {
  [ -z "$BASH_VERSION" ] || set +o posix
  exec 4>&1 7<&0 9>&2
  {
    $session /bin/sh -c "$start" sh "$@" <&7 3<&- 5>&- 7<&- 8<&6
    echo "$?"
  } 2>&1 | {
    exec 4>&- 7<&- 9>&-
    read -r _ pid end
    # The command ended before it read the marker: whoever waits must not wait on.
    [ -n "$end" ] || read -r end <&6
    {
      while read -r word rows columns <&6; do
        case $word in
        size) stty rows "$rows" cols "$columns" <"$input" ;;
        *) kill -s "$word" -- "$group$pid" ;;
        esac
      done
      kill -s KILL -- "$group$pid"
    } </dev/null >/dev/null 2>&1 &
    watcher=$!
    status= said=
    while read -r line; do
      [ -z "$status" ] || continue
      case $line in
      *[!0-9]*) said=s ;;
      *) status=$line ;;
      esac
    done
    kill "$watcher" 2>/dev/null
    printf '%s%s\\n' "$end" "$status$said"
    printf '%s\\n' "$end" >&2
  }
}
`;

/** Waits for a port and finds its device by name. */
const FIND_PORT_FUNCTION = `${RETRY_FUNCTION}
port() {
  tries=0
  while :; do
    for file in /sys/class/virtio-ports/*/name; do
      found=
      read -r found <"$file"
      node=\${file%/name}
      node=/dev/\${node##*/}
      [ "$found" = "$1" ] && [ -c "$node" ] && return
    done
    again
  done 2>/dev/null
}
`;

/**
 * Runs a command with its streams on virtio-serial ports. Arguments: port name; yes
 * or no for stdin, or a terminal's device; the start script, its arguments.
 *
 * - NAME.out carries stdout, then the end marker and the exit status, and an "s" if
 *   the shell reported a signal.
 * - NAME.err carries a ready line, stderr, then the end marker. The host sends the
 *   end marker here, as a process list would show an argument; or the requests for
 *   {@linkcode WARM_SHELL_SCRIPT}; then signal names, and `size ROWS COLUMNS` of a
 *   terminal. When the host closes the port, the command is killed.
 * - NAME.in carries stdin in frames: a line with block size and count, then the
 *   blocks. A port that the host closes may lose unread bytes.
 *
 * Output goes through pipes, so that the command can reopen /dev/stdout and the end
 * marker follows the last byte. The script keeps a terminal open, or this would lose
 * its size.
 */
export const RUN_ON_PORTS_SCRIPT = `
name=$1 input=$2 start=$3
shift 3
${FIND_PORT_FUNCTION}port "$name.out"
exec 5>"$node"
port "$name.err"
exec 6<>"$node"
[ "$input" != yes ] || {
  port "$name.in"
  exec 3<"$node"
}
# A script that waits for its arguments gets this process id, and reports ready itself.
if [ $# -gt 0 ]; then echo ready >&6; else set -- "$$"; fi
group=- session=setsid
command -v setsid >/dev/null || group= session=
feed() {
  tries=0
  until read -r size count <&3; do
    [ -c "$node" ] || return
    again
  done
  while [ "$size" -gt 0 ]; do
    dd bs="$size" count="$count" iflag=fullblock <&3 2>/dev/null || return
    read -r size count <&3 || return
  done
}
${LAUNCH_FUNCTION}{
  {
    case $input in
    yes) feed 5>&- 6>&- | launch "$@" ;;
    no) launch "$@" </dev/null ;;
    *)
      if [ -n "$session" ] && [ -c "$input" ]; then
        session="setsid -c"
      else
        input=/dev/null
      fi
      launch "$@" <>"$input"
      ;;
    esac
  } 2>&1 >&4 4>&- | cat >&6 3<&- 4>&- 5>&-
} 4>&1 | cat >&5 3<&- 6>&-
`;

/**
 * Starts a command on a terminal, which is standard input. Runs the start script there,
 * writes its status, and keeps the terminal open until the host has read the end marker
 * from it and sends KILL: a terminal hangs up when its session's leader exits. Arguments:
 * rows, columns, the start script, its arguments. The other descriptors are those of
 * {@linkcode START_COMMAND_SCRIPT}. Signals of the keyboard reach the command only.
 */
export const START_ON_TERMINAL_SCRIPT = `
rows=$1 columns=$2 start=$3
shift 3
${READ_END_MARKER}
echo "pid $$ $end"
{ true </dev/tty && stty 115200 sane && stty rows "$rows" cols "$columns"; } 2>/dev/null || {
  printf '%sT\\n' "$end" >&6
  exit 126
}
trap : INT QUIT TSTP
/bin/sh -c "$start" sh "$@" >/dev/null 4>&0 9>&0 8<<EOF
$end
EOF
echo "$?"
trap "" TTOU
stty raw -echo
printf '%s\\n' "$end" >&0
while :; do sleep 60; done
`;
