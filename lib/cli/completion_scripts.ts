/**
 * Shell completion scripts. Each runs `toolsmith completions candidates`, which
 * prints the kind on the first line, then one word per line with a tab and its
 * help.
 */

/** For bash 3.2 and newer, which splits words at `=` and `:`. */
const BASH_SCRIPT = `_toolsmith() {
  local line=\${COMP_LINE:0:COMP_POINT} kind word
  local -a words
  read -a words <<<"$line"
  [[ $line == *[[:blank:]] ]] && words+=('')
  local current=\${words[\${#words[@]}-1]}
  local tail=\${current##*[=:]}
  local head=\${current%"$tail"}
  COMPREPLY=()
  {
    read -r kind
    case $kind in
    file | directory)
      compopt -o filenames 2>/dev/null
      while read -r word; do
        COMPREPLY+=("$word")
      done < <(compgen -A "$kind" -- "$tail")
      ;;
    words)
      while IFS=$'\\t' read -r word _; do
        COMPREPLY+=("\${word#"$head"}")
      done
      ;;
    esac
  } < <("\${words[0]}" completions candidates -- "\${words[@]:1}" 2>/dev/null)
}
complete -F _toolsmith toolsmith
`;

const ZSH_SCRIPT = `#compdef toolsmith
_toolsmith() {
  local -a given lines
  given=("\${(@Q)words[2,CURRENT-1]}" "$PREFIX")
  lines=("\${(@f)$("\${(Q)words[1]}" completions candidates -- "\${given[@]}" 2>/dev/null)}")
  local kind=$lines[1]
  shift lines
  case $kind in
  file) compset -P '--*='; _files ;;
  directory) compset -P '--*='; _files -/ ;;
  words)
    lines=("\${(@)lines//:/\\\\:}")
    lines=("\${(@)lines/$'\\t'/:}")
    _describe toolsmith lines
    ;;
  esac
}
if [[ $funcstack[1] == _toolsmith ]]; then
  _toolsmith "$@"
else
  compdef _toolsmith toolsmith
fi
`;

const FISH_SCRIPT = `function __toolsmith_candidates
  set -l words (commandline -opc)
  set -l current (commandline -ct)
  set -l lines ($words[1] completions candidates -- $words[2..-1] "$current" 2>/dev/null)
  set -l head (string match -r -- '^--[^=]*=' "$current"; or echo)
  set -l tail (string replace -r -- '^--[^=]*=' '' "$current")
  switch "$lines[1]"
    case file
      printf '%s\\n' "$head"(__fish_complete_path "$tail")
    case directory
      printf '%s\\n' "$head"(__fish_complete_directories "$tail")
    case words
      printf '%s\\n' $lines[2..-1]
  end
end
complete -c toolsmith -f -a '(__toolsmith_candidates)'
`;

/** The completion script of each shell. */
export const COMPLETION_SCRIPTS = {
  bash: BASH_SCRIPT,
  zsh: ZSH_SCRIPT,
  fish: FISH_SCRIPT,
};
