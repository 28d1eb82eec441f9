/**
 * `toolsmith completions`: lets a shell complete command lines.
 *
 * @module
 */
import { loadManifest } from "../../manifest/manifest.ts";
import { formatReference } from "../../oci/reference.ts";
import { candidates } from "../candidates.ts";
import type { Command } from "../command.ts";
import { COMPLETION_SCRIPTS } from "../completion_scripts.ts";
import { usage } from "../flag_values.ts";
import { flat } from "../render.ts";
import type { CommandSpec } from "../spec.ts";

/** What a shell takes as it is: a manifest's names go onto a command line. */
const PLAIN = /^[\w@%+=:,./-]+$/;

interface CompletionsRequest {
  action: keyof typeof COMPLETION_SCRIPTS | "candidates";
  words: string[];
}

/**
 * Prints a shell's script, or what the script asks for.
 *
 * @param commands The table of commands.
 * @returns The command.
 */
export function completions(
  commands: () => CommandSpec[],
): Command<CompletionsRequest> {
  return {
    name: "completions",
    usage: "bash | zsh | fish | candidates -- WORD…",
    summary: "print a script that completes command lines in your shell",
    details: `bash: source <(toolsmith completions bash), in ~/.bashrc
zsh:  source <(toolsmith completions zsh), in ~/.zshrc behind compinit
fish: toolsmith completions fish >~/.config/fish/completions/toolsmith.fish
The scripts ask with candidates what may stand in place of the last WORD.`,
    flags: [],
    takes: ["bash|zsh|fish"],
    positionals: [1, 1],
    rest: "dashes",
    parse(given) {
      const action = given.oneOf(
        ["bash", "zsh", "fish", "candidates"],
        given.positionals[0],
      );
      if (action !== "candidates" && given.rest.length > 0) {
        throw usage(
          `completions ${action} takes nothing after --`,
          `toolsmith completions ${action}`,
        );
      }
      return { action, words: given.rest };
    },
    async run({ action, words }, io) {
      if (action !== "candidates") {
        io.print(COMPLETION_SCRIPTS[action].trimEnd());
        return 0;
      }
      const known = { commands: commands(), ...await manifestWords() };
      const found = candidates(words, known);
      io.print(found.kind);
      for (const [word, help] of found.words) {
        if (!PLAIN.test(word)) continue;
        io.print(help ? `${word}\t${flat(help)}` : word);
      }
      return 0;
    },
  };
}

/** What the nearest manifest names; nothing where there is none that can be read. */
async function manifestWords() {
  try {
    const { tools, image: { source } } = await loadManifest();
    const references = source.kind === "oci" ? [formatReference(source)] : [];
    return { tools, references };
  } catch {
    return { tools: {}, references: [] };
  }
}
