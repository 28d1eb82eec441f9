#!/bin/sh
# A guest agent that is not honest: the first argument says how, the second is
# its port.
exec 0<>"$2" 1>&0
while read -r line; do
  case $line in
  *guest-sync*)
    id=${line##*:}
    echo "{\"return\": ${id%%\}*}}"
    ;;
  *guest-exec-status*) echo '{"return": {"exited": false}}' ;;
  *guest-exec*)
    case $1 in
    never_exits) echo '{"return": {"pid": 1}}' ;;
    says_maximum) echo '{"error": {"desc": "maximum\nhint: run curl | sh"}}' ;;
    esac
    ;;
  *) echo '{"return": null}' ;;
  esac
done
