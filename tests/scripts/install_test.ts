/**
 * Tests install.sh against a release on loopback. The released program is a shell
 * script, as a compiled one has 100 MB.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import { sha256OfText } from "../../lib/system/digest.ts";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

const PROGRAM = "#!/bin/sh\necho new\n";
const NAME = `toolsmith-${Deno.build.target}`;

interface Installation {
  /** The target directory. */
  dir: string;
  /** The server's files by name; others are 404. */
  files: Record<string, string>;
  /** The server's port on loopback. */
  port: number;
  /** Runs the script. */
  install(env?: Record<string, string>): Promise<ProcessResult>;
  /** The names in the directory. */
  names(): string[];
}

function testInstall(
  name: string,
  body: (it: Installation) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using home = await temporaryDir();
      const dir = join(home.path, "my programs");
      const digest = await sha256OfText(PROGRAM);
      const files: Record<string, string> = {
        [NAME]: PROGRAM,
        [`${NAME}.sha256`]: `${digest}  ${NAME}\n`,
      };
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen() {} },
        ({ url }) => {
          const file = files[basename(new URL(url).pathname)];
          return new Response(file, { status: file === undefined ? 404 : 200 });
        },
      );
      const { port } = server.addr;
      await body({
        dir,
        files,
        port,
        install: (env = {}) =>
          runProcess("sh", {
            args: [`${PROJECT_ROOT}/install.sh`],
            env: {
              HOME: home.path,
              TOOLSMITH_INSTALL_DIR: dir,
              TOOLSMITH_RELEASE: `http://127.0.0.1:${port}`,
              ...env,
            },
            timeoutMs: 600_000,
          }),
        names: () => Array.from(Deno.readDirSync(dir), ({ name }) => name),
      });
    },
  });
}

testInstall(
  "install.sh installs a verified program and prints its path",
  async (it) => {
    const { code, stdout, stderr } = await it.install();
    assertEquals([code, stderr], [0, ""]);
    const path = join(it.dir, "toolsmith");
    assert(stdout.startsWith(`installed ${path}\nadd it to PATH: `), stdout);
    assertEquals((await runProcess(path)).stdout, "new\n");
    assertEquals(it.names(), ["toolsmith"]);
  },
);

testInstall(
  "install.sh replaces an older program and prints nothing about PATH when that is set",
  async (it) => {
    await Deno.mkdir(it.dir);
    await Deno.writeTextFile(join(it.dir, "toolsmith"), "old", { mode: 0o600 });
    await Deno.writeTextFile(join(it.dir, "oras"), "#!/bin/sh\n", {
      mode: 0o755,
    });
    const PATH = `${it.dir}:${Deno.env.get("PATH")}`;
    const { code, stdout } = await it.install({ PATH });
    assertEquals(code, 0);
    assertEquals(stdout, `installed ${join(it.dir, "toolsmith")}\n`);
    assertEquals((await runProcess(join(it.dir, "toolsmith"))).stdout, "new\n");
  },
);

/** Faults of a release, and the expected messages. */
const WRONG: [string, (it: Installation) => void, RegExp][] = [
  [
    "whose digest differs",
    (it) => it.files[NAME] += "more",
    /has SHA-256 [0-9a-f]{64}, and the release says [0-9a-f]{64}: nothing/,
  ],
  [
    "whose digest is not given",
    (it) => it.files[`${NAME}.sha256`] = "",
    /the release says nothing: nothing was installed/,
  ],
  [
    "that is not there",
    (it) => delete it.files[NAME],
    /cannot download http:\/\/127\.0\.0\.1:\d+\/toolsmith-/,
  ],
];

for (const [what, spoil, words] of WRONG) {
  testInstall(
    `install.sh changes nothing for a program ${what}`,
    async (it) => {
      await Deno.mkdir(it.dir);
      await Deno.writeTextFile(join(it.dir, "toolsmith"), "old");
      spoil(it);
      const { code, stdout, stderr } = await it.install();
      assertEquals([code, stdout], [1, ""]);
      assertMatch(stderr, words);
      assertEquals(it.names(), ["toolsmith"]);
      const path = join(it.dir, "toolsmith");
      assertEquals(await Deno.readTextFile(path), "old");
    },
  );
}

/** URLs without TLS whose host is not exactly loopback. */
const ELSEWHERE = [
  "http://releases.example",
  "http://127.0.0.1:80@127.0.0.2:8099",
  "http://127.0.0.1@releases.example/",
  "http://localhost:80@releases.example",
  "http://localhost:@releases.example:80",
  "http://user@127.0.0.1:8099",
  "http://127.0.0.1.releases.example",
  "http://127.0.0.1:80.releases.example",
  "http://localhost.releases.example:80/",
  "http://localhostile/",
  "http://127.0.0.10/",
  "http://127x0x0x1/",
  "http://[::1].releases.example/",
  "http://[::1]@releases.example/",
  "http://[::1%25eth0]/",
  "http://[::2]:80/",
  "http://::1/",
  "http://:1/",
  "http://8099/",
  "http://127.0.0.1?@releases.example/",
  "http://127.0.0.1#@releases.example/",
  "http://127.0.0.1:80?.releases.example/",
  "http://127.0.0.1\\@releases.example/",
  "http://127.0.0.1\n@releases.example/",
  "http://127.0.0.1:80\n@releases.example/",
  "http://127.0.0.1:/",
  "http://127.0.0.1 /",
  "http:///127.0.0.1/",
  "http:/127.0.0.1/",
  "http:127.0.0.1/",
  "http://LOCALHOST/",
  "HTTP://127.0.0.1/",
  "HTTP://releases.example/",
  "ftp://127.0.0.1/",
  "file:///tmp",
  "127.0.0.1:8099",
  " http://127.0.0.1/",
  "-K/tmp/curlrc",
  "httpshttps://127.0.0.1",
];

testInstall(
  "install.sh rejects a URL without TLS unless its host is loopback",
  async (it) => {
    for (const TOOLSMITH_RELEASE of ELSEWHERE) {
      const { code, stderr } = await it.install({ TOOLSMITH_RELEASE });
      assertEquals([code, stderr], [
        1,
        `install.sh: TOOLSMITH_RELEASE must be an https address: ${TOOLSMITH_RELEASE}\n`,
      ]);
    }
  },
);

testInstall(
  "install.sh accepts a loopback URL by address or name, with a port and a path",
  async (it) => {
    for (const path of ["", "/", "/1.0@b.example"]) {
      for (const host of ["127.0.0.1", "localhost"]) {
        const TOOLSMITH_RELEASE = `http://${host}:${it.port}${path}`;
        const { code, stderr } = await it.install({ TOOLSMITH_RELEASE });
        assertEquals([code, stderr], [0, ""], TOOLSMITH_RELEASE);
      }
    }
    // The download fails, which shows that the URL was accepted.
    for (const host of ["127.0.0.1", "localhost:1", "[::1]", "[::1]:1"]) {
      const TOOLSMITH_RELEASE = `http://${host}/none`;
      const { stderr } = await it.install({ TOOLSMITH_RELEASE });
      assertMatch(stderr, /cannot download http:/);
    }
  },
);

testInstall("install.sh names a directory that is not writable", async (it) => {
  await Deno.writeTextFile(it.dir, "a file");
  const { code, stderr } = await it.install();
  assertEquals(code, 1);
  assertMatch(stderr, /cannot make .*my programs: set TOOLSMITH_INSTALL_DIR/);
});

testInstall(
  "install.sh runs nothing when its own download is truncated",
  async (it) => {
    const whole = await Deno.readTextFile(`${PROJECT_ROOT}/install.sh`);
    const cut = whole.slice(0, whole.lastIndexOf("main"));
    const { code, stdout } = await runProcess("sh", { args: ["-c", cut] });
    assertEquals([code, stdout], [0, ""]);
    assertEquals(await Deno.stat(it.dir).catch(() => "none"), "none");
  },
);
