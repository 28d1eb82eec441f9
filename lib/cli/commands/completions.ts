/**
 * `toolsmith completions`: lets a shell complete command lines. Each shell's script runs
 * `toolsmith completions candidates`, which prints the kind on the first line, then one
 * word per line with a tab and its help.
 */
import { loadManifest } from "../../manifest/manifest.ts";
import { formatReference } from "../../oci/reference.ts";
import type { Environment } from "../../environment.ts";
import { quoteShellWord } from "../../path.ts";
import {
  completionCandidates,
  type PlaceholderValues,
} from "../completion_candidates.ts";
import { defineSubcommand, type Subcommand } from "../subcommand.ts";
import { parseChoice, usageError } from "../usage_error.ts";
import { toSingleLine } from "../render.ts";

export const COMPLETION_SCRIPTS = {
  /** For bash 3.2 and newer, which splits words at `=` and `:`. */
  bash: `_toolsmith() {
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
`,
  zsh: `#compdef toolsmith
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
`,
  fish: `function __toolsmith_candidates
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
`,
};

/**
 * Prints a completion script, or the candidates that the script asks for. `commands` is
 * a function, as the table holds this command too.
 */
export function createCompletionsCommand(
  commands: () => Subcommand[],
): Subcommand {
  return defineSubcommand({
    name: "completions",
    usage: "bash | zsh | fish | candidates -- WORD…",
    summary: "print a script that completes command lines in your shell",
    details: `bash: source <(toolsmith completions bash), in ~/.bashrc
zsh:  source <(toolsmith completions zsh), in ~/.zshrc after compinit
fish: toolsmith completions fish >~/.config/fish/completions/toolsmith.fish
The scripts call toolsmith completions candidates to complete the last WORD.`,
    flags: {},
    positionals: ["bash|zsh|fish"],
    passThrough: "dashes",
    async run(_, io, { positionals: [word], rest }) {
      const actions = ["bash", "zsh", "fish", "candidates"] as const;
      const action = parseChoice(actions, word, "completions");
      if (action === "candidates") {
        const values = await loadManifestValues(io.env);
        const found = completionCandidates(rest, commands(), values);
        io.printLine(typeof found === "string" ? found : "words");
        for (const [word, help] of typeof found === "string" ? [] : found) {
          // Names from a manifest end up on a command line.
          if (quoteShellWord(word) !== word) continue;
          io.printLine(help ? `${word}\t${toSingleLine(help)}` : word);
        }
      } else if (rest.length === 0) {
        io.printLine(COMPLETION_SCRIPTS[action].trimEnd());
      } else {
        throw usageError(
          `completions ${action} takes nothing after --`,
          `usage: toolsmith completions ${action}`,
        );
      }
    },
  });
}

/** Empty without a valid manifest. */
async function loadManifestValues(env: Environment) {
  const values: PlaceholderValues = {};
  try {
    const { tools, image: { source } } = await loadManifest(undefined, { env });
    values.TOOL = Object.entries(tools);
    if (source.kind === "oci") values.REF = [[formatReference(source)]];
  } catch {
    // Offers no names.
  }
  return values;
}
