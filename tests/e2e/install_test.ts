/**
 * install.sh, as a new user runs it, against a release on loopback. The program
 * in it is a stand-in: a compiled one has 100 MB, and the script does not look
 * into it.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import { sha256OfText } from "../../lib/system/digest.ts";
import { type Output, run } from "../../lib/system/process.ts";
import { ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

const PROGRAM = "#!/bin/sh\necho new\n";
const NAME = `toolsmith-${Deno.build.target}`;

interface Installation {
  /** The directory that the script is told to install into. */
  dir: string;
  /** What a server answers to the name of a file; absent: 404. */
  files: Record<string, string>;
  /** The server's port on loopback. */
  port: number;
  /** Runs the script. */
  install(env?: Record<string, string>): Promise<Output>;
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
          run("sh", {
            args: [`${ROOT}/install.sh`],
            env: {
              HOME: home.path,
              TOOLSMITH_INSTALL_DIR: dir,
              TOOLSMITH_RELEASE: `http://127.0.0.1:${port}`,
              ...env,
            },
            timeoutMs: 30_000,
          }),
        names: () => Array.from(Deno.readDirSync(dir), ({ name }) => name),
      });
    },
  });
}

testInstall(
  "install.sh puts a verified program into place, and says where",
  async (it) => {
    const { code, stdout, stderr } = await it.install();
    assertEquals([code, stderr], [0, ""]);
    const path = join(it.dir, "toolsmith");
    assert(stdout.startsWith(`installed ${path}\nadd it to PATH: `), stdout);
    assertEquals((await run(path)).stdout, "new\n");
    assertEquals(it.names(), ["toolsmith"]);
  },
);

testInstall(
  "install.sh replaces an older program, and says no more than it must",
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
    assertEquals((await run(join(it.dir, "toolsmith"))).stdout, "new\n");
  },
);

/** What is wrong with the release, and what is said. */
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
    `install.sh leaves all as it was for a program ${what}`,
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

/** Addresses without TLS that lead elsewhere, or are not written exactly. */
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
  "install.sh refuses an address without TLS, unless its host is loopback",
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
  "install.sh accepts loopback by address or name, with a port and a path",
  async (it) => {
    for (const path of ["", "/", "/1.0@b.example"]) {
      for (const host of ["127.0.0.1", "localhost"]) {
        const TOOLSMITH_RELEASE = `http://${host}:${it.port}${path}`;
        const { code, stderr } = await it.install({ TOOLSMITH_RELEASE });
        assertEquals([code, stderr], [0, ""], TOOLSMITH_RELEASE);
      }
    }
    // No release is there; the script asks for it.
    for (const host of ["127.0.0.1", "localhost:1", "[::1]", "[::1]:1"]) {
      const TOOLSMITH_RELEASE = `http://${host}/none`;
      const { stderr } = await it.install({ TOOLSMITH_RELEASE });
      assertMatch(stderr, /cannot download http:/);
    }
  },
);

testInstall("install.sh names a directory that it cannot write", async (it) => {
  await Deno.writeTextFile(it.dir, "a file");
  const { code, stderr } = await it.install();
  assertEquals(code, 1);
  assertMatch(stderr, /cannot make .*my programs: set TOOLSMITH_INSTALL_DIR/);
});

testInstall("install.sh that is cut on its way runs nothing", async (it) => {
  const whole = await Deno.readTextFile(`${ROOT}/install.sh`);
  const cut = whole.slice(0, whole.lastIndexOf("main"));
  const { code, stdout } = await run("sh", { args: ["-c", cut] });
  assertEquals([code, stdout], [0, ""]);
  assertEquals(await Deno.stat(it.dir).catch(() => "none"), "none");
});
