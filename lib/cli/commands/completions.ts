/** `toolsmith completions`: lets a shell complete command lines. */
import { loadManifest } from "../../manifest/manifest.ts";
import { formatReference } from "../../oci/reference.ts";
import type { Environment } from "../../environment.ts";
import { completionCandidates } from "../completion_candidates.ts";
import { defineSubcommand, type Subcommand } from "../subcommand.ts";
import { COMPLETION_SCRIPTS } from "../completion_scripts.ts";
import { parseChoice, usageError } from "../flag.ts";
import { toSingleLine } from "../render.ts";

/** Needs no quoting: names from a manifest end up on a command line. */
const SHELL_SAFE_WORD_PATTERN = /^[\w@%+=:,./-]+$/;

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
    argumentPlaceholders: ["bash|zsh|fish"],
    positionalCount: [1, 1],
    passThrough: "dashes",
    async run(_, io, { positionals: [word], rest }) {
      const actions = ["bash", "zsh", "fish", "candidates"] as const;
      const action = parseChoice(actions, word, "completions");
      if (action !== "candidates") {
        if (rest.length === 0) {
          io.printLine(COMPLETION_SCRIPTS[action].trimEnd());
          return 0;
        }
        throw usageError(
          `completions ${action} takes nothing after --`,
          `usage: toolsmith completions ${action}`,
        );
      }
      const known = {
        commands: commands(),
        ...await loadToolsAndReferences(io.env),
      };
      const found = completionCandidates(rest, known);
      io.printLine(found.kind);
      for (const [word, help] of found.words) {
        if (!SHELL_SAFE_WORD_PATTERN.test(word)) continue;
        io.printLine(help ? `${word}\t${toSingleLine(help)}` : word);
      }
      return 0;
    },
  });
}

/** Returns nothing if there is no valid manifest. */
async function loadToolsAndReferences(env: Environment) {
  try {
    const { tools, image: { source } } = await loadManifest(undefined, { env });
    const references = source.kind === "oci" ? [formatReference(source)] : [];
    return { tools, references };
  } catch {
    return { tools: {}, references: [] };
  }
}
