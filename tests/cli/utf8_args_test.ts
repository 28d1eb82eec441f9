import { assertEquals, assertStringIncludes } from "@std/assert";
import { assertUtf8Args } from "../../lib/cli/command_line.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { scriptCommand } from "../support/script.ts";

/** Prints the error of assertUtf8Args(). */
const ASK = `
  import { assertUtf8Args } from "/lib/cli/command_line.ts";
  try {
    assertUtf8Args(Deno.args);
    console.log("fine");
  } catch (error) {
    console.log(error.code + ": " + error.message);
  }
`;

Deno.test("assertUtf8Args() reports the position of an argument with U+FFFD that this process did not receive", async () => {
  assertUtf8Args(["plain", "\u00e4"]);
  const args = ["a", "\ufffd never given", "\ufffd nor this"];
  const error = await expectFailure("usage", () => assertUtf8Args(args));
  assertEquals(
    error.message,
    "Argument 2 is not UTF-8: \ufffd never given",
  );
  assertStringIncludes(error.hint!, "UTF-8");
});

Deno.test({
  name:
    "toolsmith rejects an argument that is not UTF-8 and accepts a literal U+FFFD",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    /** Passes arguments byte for byte, written by a shell. */
    const ask = async (args: string[], permissions = ["-A"]) => {
      const options = { permissions };
      const command = await scriptCommand(`${dir.path}/ask.ts`, ASK, options);
      const words = args.map((bytes) => `"$(printf '${bytes}')"`).join(" ");
      const { stdout } = await runProcess("sh", {
        args: ["-c", `exec "$@" ${words}`, "sh", Deno.execPath(), ...command],
        env: { LC_ALL: "C.UTF-8" },
      });
      return stdout.trimEnd();
    };
    const refused = (place: number, shown: string) =>
      `usage: Argument ${place} is not UTF-8: ${shown}`;
    const [fffd, bom] = ["\\357\\277\\275", "\\357\\273\\277"];
    const all: [string[], string][] = [
      [["a\\377b"], refused(1, "a\ufffdb")],
      [["a", `a${fffd}b`, "c"], "fine"],
      // After a byte order mark, and as the last argument.
      [["a", `${bom}${fffd}`], "fine"],
      [[fffd, "x\\377", "y"], refused(2, "x\ufffd")],
      [["", `${fffd}`, "x\\300"], refused(3, "x\ufffd")],
    ];
    for (const [args, said] of all) {
      assertEquals(await ask(args), said, args.join(" "));
    }
    // Without permission to read /proc, both are rejected.
    assertEquals(await ask([`a${fffd}`], []), refused(1, "a\ufffd"));
  },
});
