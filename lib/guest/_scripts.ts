/**
 * The shell scripts that run in the guest. They are fixed texts: what differs
 * comes as arguments, so that no shell ever reads it as code. They need no more
 * than a POSIX shell, `cat`, `dd`, `sleep` and, to end whole process groups,
 * `setsid`; a terminal needs `setsid -c` and `stty`.
 *
 * @module
 */

import { SETUP_SCRIPT } from "./_setup_scripts.ts";

/** Words that {@linkcode COMMAND_SCRIPT} puts after the marker on stderr. */
export const START_FAILURES = {
  N: "not found",
  A: "not executable",
  D: "no such directory",
  T: "no terminal",
} as const;

/** Pauses before something is tried again, but not for ever. */
const AGAIN_FUNCTION = `
again() {
  tries=$((tries + 1))
  [ "$tries" -lt 300 ] || exit 1
  sleep 0.03 2>/dev/null || sleep 1
}
`;

/** Takes the marker, once the host is there. */
const MARKER = `${AGAIN_FUNCTION}
tries=0
until read -r end <&8; do again; done
`;

/** Its variables have names of its own: those of the command may have any other. */
const BECOME = `
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
 * Becomes the command: sets its environment and directory, looks it up, replaces
 * itself. Arguments: directory, the one for want of it, count of variables, the
 * variables as `NAME=value`, the command, its arguments. It writes its process id and the marker to standard
 * output first. Descriptors 4 and 9 are the command's output, 6 goes to the host,
 * from 8 comes the marker.
 */
export const START_SCRIPT = MARKER + BECOME;

/**
 * The same, but it waits for its arguments, in a guest that is saved meanwhile. Its
 * argument: the process id of the shell around it. The host sends the marker; then
 * any number of set-ups, each with the words of {@linkcode SETUP_SCRIPT} or none; and
 * the command: "yes" or "no" for input and the words above. Each is a line with its
 * kind, `setup` or `command`, and the count of its words, and a line for each word,
 * with `\\0` and three octal digits for each byte that is not printable. To the host
 * go a greeting; after each set-up what it prints, the marker, its status, and the
 * process id; and a greeting when the words of the command have arrived.
 */
export const WAITING_SCRIPT = `
setup() (
${SETUP_SCRIPT})
shell=$1
# Until another process has ended, those that were started with this one rest, too.
sleep 0.1 2>/dev/null || sleep 1
echo ready >&6
${MARKER}
while read -r kind count <&8; do
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
  [ $# -eq 0 ] || setup "$@" >&6 2>/dev/null
  echo "$end$? $shell" >&6
done
[ "$kind" = command ] || exit
# Where nobody takes this, another shell has got the command.
echo ready >&6 || exit
[ "$1" = yes ] || exec </dev/null
shift
${BECOME}`;

/**
 * Runs the command with the script above, on the streams of its caller, and
 * writes the end of both. The command runs in the foreground: only so does each
 * shell report a signal, on the pipe that process id and status go through (and
 * bash only outside its POSIX mode). Descriptor 6 carries names of signals.
 */
export const LAUNCH_FUNCTION = `
launch() {
  [ -z "$BASH_VERSION" ] || set +o posix
  exec 4>&1 7<&0 9>&2
  {
    \${group:+setsid} /bin/sh -c "$start" sh "$@" <&7 3<&- 5>&- 7<&- 8<&6
    echo "$?"
  } 2>&1 | {
    exec 4>&- 7<&- 9>&-
    read -r _ pid end
    # It has ended before it was told: whoever waits must not wait on.
    [ -n "$end" ] || read -r end <&6
    {
      while read -r word <&6; do
        kill -s "$word" -- "$group$pid"
      done
      kill -s KILL -- "$group$pid"
    } </dev/null >/dev/null 2>&1 &
    watcher=$!
    status= said=
    while read -r line; do
      said=$said$status
      status=$line
    done
    kill "$watcher" 2>/dev/null
    printf '%s%s\\n' "$end" "$status\${said:+s}"
    printf '%s\\n' "$end" >&2
  }
}
`;

/** Finds a port by its name, which takes the guest a moment. */
const PORT_FUNCTIONS = `${AGAIN_FUNCTION}
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
 * Runs a command with its streams on ports of the host. Arguments: name of the
 * ports, whether there is input, the script that starts it, its arguments.
 *
 * - NAME.out carries stdout, then the marker and the exit status, and an "s" if
 *   the shell has reported a signal.
 * - NAME.err carries a greeting, stderr, then the marker; from the host comes the
 *   marker, which no argument holds, or any list of processes would show it, then
 *   what {@linkcode WAITING_SCRIPT} reads, then names of signals. When it ends, the
 *   host is gone, and the command is killed.
 * - NAME.in carries stdin: a line with a size and a count, so many blocks of so
 *   many bytes, and so on, as a port that the host closes may lose what was not
 *   read yet.
 *
 * What the command writes goes through pipes, so that it may open /dev/stdout
 * again, and so that the marker comes after its last byte.
 */
export const COMMAND_SCRIPT = `
name=$1 input=$2 start=$3
shift 3
${PORT_FUNCTIONS}port "$name.out"
exec 5>"$node"
port "$name.err"
exec 6<>"$node"
[ "$input" = no ] || {
  port "$name.in"
  exec 3<"$node"
}
# A script that waits for its arguments is told whose it is, and greets by itself.
if [ $# -gt 0 ]; then echo ready >&6; else set -- "$$"; fi
group=-
command -v setsid >/dev/null || group=
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
    *) launch "$@" </dev/null ;;
    esac
  } 2>&1 >&4 4>&- | cat >&6 3<&- 4>&- 5>&-
} 4>&1 | cat >&5 3<&- 6>&-
`;

/**
 * Leads the session of a terminal: runs the command, and keeps the terminal until
 * the host has its last byte, as the end of a leader hangs it up. Arguments: the
 * start script, its arguments. Standard streams are the terminal; descriptor 3
 * takes process id and status, 8 has the marker. What keys send is for the
 * command alone.
 */
export const LEADER_SCRIPT = `
start=$1
shift
read -r end <&8
exec 8<&-
echo "$$" >&3
trap : INT QUIT TSTP
/bin/sh -c "$start" sh "$@" 3>&- 4>&1 9>&2 >/dev/null 8<<EOF
$end
EOF
echo "$?" >&3
trap "" TTOU
stty raw -echo
printf '%s\\n' "$end"
while :; do sleep 60; done
`;

/**
 * Runs a command on a terminal. Arguments: name of the ports, the terminal's
 * device, its rows and columns, the two scripts above, arguments of the first.
 *
 * - The terminal carries what the command writes, then the marker.
 * - NAME.out carries the marker and the exit status.
 * - NAME.err carries a greeting, then the marker; from the host come the marker,
 *   then names of signals, and `size ROWS COLUMNS`. KILL is sent once all of the
 *   terminal has been read. When the port ends, the host is gone.
 *
 * The terminal stays open here, or it would forget its size.
 */
export const TERMINAL_SCRIPT = `
name=$1 tty=$2 rows=$3 columns=$4 leader=$5
shift 5
${PORT_FUNCTIONS}port "$name.out"
exec 5>"$node"
port "$name.err"
exec 6<>"$node"
until read -r end <&6; do again; done
echo ready >&6
size() {
  stty rows "$1" cols "$2" <&4
}
{
  command -v setsid && [ -c "$tty" ] && exec 4<>"$tty" &&
    stty 115200 sane <&4 && size "$rows" "$columns"
} >/dev/null 2>&1 || {
  printf '%sT\\n' "$end" >&6
  printf '%s\\n' "$end" >&5
  exit
}
setsid -c /bin/sh -c "$leader" sh "$@" 3>&1 <&4 >&4 2>&4 4>&- 5>&- 8<<EOF |
$end
EOF
{
  read -r pid
  {
    while read -r word more <&6; do
      case $word in
      size) size $more ;;
      *) kill -s "$word" -- "-$pid" ;;
      esac
    done
    kill -s KILL -- "-$pid"
  } >/dev/null 2>&1 &
  read -r status
  cat
  kill "$!"
  printf '%s%s\\n' "$end" "$status" >&5
  printf '%s\\n' "$end" >&6
}
`;
