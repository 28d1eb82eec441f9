import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  findMachine,
  type MachineState,
  stopMachine,
  useMachine,
} from "../lib/detached.ts";
import { run } from "../lib/process.ts";
import { denoArgs, ROOT } from "../scripts/deno.ts";
import { failure } from "./_failure.ts";
import { temporaryFolder } from "./_folder.ts";
import { collect, env, guest, needsGuest } from "./_guest.ts";

/** Runs a script in a Deno of its own, which ends before this test goes on. */
async function elsewhere(folder: string, body: string): Promise<string> {
  const script = join(folder, `${crypto.randomUUID()}.ts`);
  await Deno.writeTextFile(
    script,
    `import { boot } from "${ROOT}/lib/boot.ts";
     import { detach, findMachine, useMachine } from "${ROOT}/lib/detached.ts";
     ${body}`,
  );
  const { code, stdout, stderr } = await run(Deno.execPath(), {
    args: await denoArgs(["run", "-A", script]),
    env: { TMPDIR: folder, ...Object.fromEntries(env) },
  });
  assertEquals(code, 0, stderr);
  return stdout;
}

Deno.test({
  name: "a detached machine",
  ...needsGuest,
  async fn(t) {
    await using folder = await temporaryFolder();
    const path = join(folder.path, ".toolsmith", "machine.json");
    const work = join(folder.path, "work");
    await Deno.mkdir(work);
    await Deno.writeTextFile(join(work, "a.txt"), "workspace\n");
    assertEquals(await findMachine(path), undefined);
    await failure("machine_not_found", () => stopMachine(path));

    await elsewhere(
      folder.path,
      `const vm = await boot({
         image: ${JSON.stringify(await guest())},
         workspace: ${JSON.stringify(work)},
       });
       await detach(vm, ${JSON.stringify(path)}, { digest: "abc" });`,
    );
    const state = await findMachine(path) as MachineState;

    await t.step(
      "it lives on when the process that booted it has ended",
      async () => {
        assertEquals([state.digest, state.network], ["abc", false]);
        assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
        assertEquals((await Deno.stat(state.folder)).mode! & 0o777, 0o700);
        await using vm = useMachine(path, state);
        const { stdout } = await vm.exec("cat", { args: ["a.txt"] });
        assertEquals(stdout, "workspace\n");
      },
    );

    await t.step("it stays when somebody is done with it", async () => {
      await using vm = useMachine(path, state);
      assertEquals((await vm.exec("sh", { args: ["-c", "exit 4"] })).code, 4);
    });

    await t.step("several processes use it at once", async () => {
      const use = (n: number) =>
        elsewhere(
          folder.path,
          `const path = ${JSON.stringify(path)};
           await using vm = useMachine(path, await findMachine(path));
           const results = await Promise.all([1, 2, 3].map((m) =>
             vm.exec("sh", { args: ["-c", "cat; echo " + m], stdin: "${n}." })));
           console.log(results.map(({ stdout }) => stdout).join(""));`,
        );
      const said = await Promise.all([1, 2, 3].map(use));
      assertEquals(
        said.map((it) => it.trim()),
        [1, 2, 3].map((n) => `${n}.1\n${n}.2\n${n}.3`),
      );
    });

    await t.step("a second one cannot take its place", async () => {
      const said = await elsewhere(
        folder.path,
        `const vm = { facts: {}, release() { throw "released"; } };
         try {
           await detach(vm as any, ${JSON.stringify(path)});
         } catch (error) {
           console.log(error.code, error.hint);
         }`,
      );
      assert(said.startsWith("usage"), said);
      assert(said.includes("toolsmith stop"), said);
    });

    await t.step(
      "a user who dies takes the command along, not the machine",
      async () => {
        await using vm = useMachine(path, state);
        await elsewhere(
          folder.path,
          `const path = ${JSON.stringify(path)};
         const vm = useMachine(path, await findMachine(path));
         await vm.exec("sh", {
           args: ["-c", "echo up; exec sleep 4242"],
           stdout: () => Deno.exit(0),
         });`,
        );
        // The watcher in the guest may need a moment.
        const look =
          "while ps -o args | grep -v grep | grep -q 'sleep 4242'; do sleep 0.1; done";
        const { code } = await vm.exec("sh", {
          args: ["-c", look],
        });
        assertEquals(code, 0);
      },
    );

    await t.step("it is stopped, and leaves nothing behind", async () => {
      const shutdown = collect("shutdown");
      const stopped = await stopMachine(path, { onEvent: shutdown.onEvent });
      assertEquals(stopped.pid, state.pid);
      assertEquals(shutdown.events.map(({ how }) => how), ["powered_down"]);
      assertEquals(await findMachine(path), undefined);
      const left = Array.from(Deno.readDirSync(folder.path), (it) => it.name)
        .filter((name) =>
          /^toolsmith-.{6,}/.test(name) && !name.includes("-no-")
        );
      assertEquals(left, []);
    });

    await t.step(
      "the state of a dead machine is recognised, and goes",
      async () => {
        // Its process id may belong to somebody else by now: here, to this test.
        const stale = { ...state, pid: Deno.pid };
        await Deno.mkdir(state.folder);
        await Deno.writeTextFile(path, JSON.stringify(stale));
        assertEquals(await findMachine(path), undefined);
        assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
        assertEquals(await Deno.stat(state.folder).catch(() => "gone"), "gone");
      },
    );

    await t.step("a state file that is none is no machine", async () => {
      for (const text of ["", "{", "[]", '{"layout":1}', '{"layout":2}']) {
        await Deno.writeTextFile(path, text);
        assertEquals(await findMachine(path), undefined);
      }
    });
  },
});
