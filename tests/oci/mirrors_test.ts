import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { findMirrors } from "../../lib/oci/mirrors.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";

/** Finds the mirrors of a registry with these files in `certs.d`. */
async function found(
  registry: string,
  files: Record<string, string>,
  variable = "",
) {
  await using dir = await temporaryDir();
  const warnings: string[] = [];
  for (const [name, text] of Object.entries(files)) {
    await Deno.mkdir(join(dir.path, name));
    await Deno.writeTextFile(join(dir.path, name, "hosts.toml"), text);
  }
  const env = new Map([
    ["TOOLSMITH_REGISTRY_CONFIG", `/nonexistent:${dir.path}`],
    ["TOOLSMITH_MIRRORS", variable],
  ]);
  const onWarning = (message: string) => warnings.push(message);
  const mirrors = await findMirrors(registry, env, onWarning);
  return { mirrors, warnings, dir: dir.path };
}

const bases = ({ mirrors }: { mirrors: { baseUrl: string }[] }) =>
  mirrors.map(({ baseUrl }) => baseUrl);

Deno.test("findMirrors() returns the hosts of hosts.toml in order, and its server entry last", async () => {
  const { mirrors, dir } = await found("reg.example", {
    "reg.example": `
      server = "https://upstream.example"
      [host."https://b.lan:5000"]
        capabilities = ["pull"]
        ca = "b.pem"
      [host."http://a.lan/path"]
        ca = ["/etc/a.pem", "other.pem"]
      [host."https://push.lan"]
        capabilities = ["push"]
      [host."c.lan/v2"]
        override_path = true
    `,
  });
  assertEquals(mirrors, [
    {
      baseUrl: "https://b.lan:5000/v2",
      resolvesTags: false,
      caFile: join(dir, "reg.example", "b.pem"),
    },
    {
      baseUrl: "http://a.lan/path/v2",
      resolvesTags: true,
      caFile: "/etc/a.pem",
    },
    { baseUrl: "https://c.lan/v2", resolvesTags: true, caFile: undefined },
    {
      baseUrl: "https://upstream.example/v2",
      resolvesTags: true,
      caFile: undefined,
    },
  ]);
});

Deno.test("findMirrors() leaves out the registry itself", async () => {
  const own = 'server = "https://registry-1.docker.io"';
  assertEquals(bases(await found("docker.io", { "docker.io": own })), []);
  const other = { "docker.io": 'server = "https://cache.lan"' };
  const caches = ["https://cache.lan/v2"];
  assertEquals(bases(await found("docker.io", other)), caches);
});

Deno.test("findMirrors() reads the directory for host and port, else _default", async () => {
  const host = (name: string) => `[host."https://${name}.lan"]`;
  const files = {
    "reg_5000_": host("port"),
    "reg": host("plain"),
    "_default": host("any"),
  };
  assertEquals(bases(await found("reg:5000", files)), ["https://port.lan/v2"]);
  assertEquals(bases(await found("reg", files)), ["https://plain.lan/v2"]);
  assertEquals(bases(await found("other", files)), ["https://any.lan/v2"]);
});

Deno.test("findMirrors() returns the registry's mirrors from TOOLSMITH_MIRRORS before those from hosts.toml", async () => {
  const variable =
    "reg=https://x.lan, other=https://y.lan,reg=http://10.0.0.1:5000/";
  const files = { reg: '[host."https://z.lan"]' };
  assertEquals(bases(await found("reg", files, variable)), [
    "https://x.lan/v2",
    "http://10.0.0.1:5000/v2",
    "https://z.lan/v2",
  ]);
});

Deno.test("findMirrors() throws for malformed mirror settings and warns about unsupported settings", async () => {
  const variables = [
    "reg",
    "reg=",
    "reg=x",
    "reg=file:///x",
    "r=https://u:p@h",
  ];
  for (const variable of variables) {
    const error = await expectFailure(
      "usage",
      () => found("reg", {}, variable),
    );
    assertEquals(error.message.includes("u:p"), false);
  }
  await expectFailure("file_unreadable", () => found("reg", { reg: "[" }));
  const { mirrors, warnings } = await found("reg", {
    reg: `[host."https://a.lan"]
      client = "key.pem"
      [host."https://b.lan"]`,
  });
  assertEquals(bases({ mirrors }), ["https://b.lan/v2"]);
  assertMatch(
    warnings[0],
    /^Skipping mirror a\.lan: client in .* not supported/,
  );
});

Deno.test("findMirrors() ignores other fields and malformed hosts in hosts.toml", async () => {
  const files = (text: string) => ({ reg: text });
  const cases: [string, string[]][] = [
    ["", []],
    ["server = 7", []],
    ['host = "x"', []],
    ["host = [1]", []],
    ['[host]\n"https://a.lan" = 7\n"https://b.lan" = []', []],
    ['[host."http://["]', []],
    ['[host."https://a.lan"]\ncapabilities = "pull"', []],
    ['[host."https://a.lan"]\ncapabilities = ["resolve"]', []],
    ['[host."https://a.lan/v2/"]', ["https://a.lan/v2"]],
    ['[host."https://a.lan/x//"]', ["https://a.lan/x/v2"]],
    [
      '[host."https://a.lan/x/"]\noverride_path = true',
      ["https://a.lan/x"],
    ],
    [
      '[host."https://a.lan/x"]\noverride_path = "true"',
      ["https://a.lan/x/v2"],
    ],
    ['server = "https://reg"\n[host."https://reg"]', []],
    ['server = "https://registry-1.docker.io"', [
      "https://registry-1.docker.io/v2",
    ]],
  ];
  for (const [text, expected] of cases) {
    assertEquals(bases(await found("reg", files(text))), expected, text);
  }
  const { mirrors } = await found("reg", files('[host."a.lan"]\nca = [7]'));
  const [{ caFile, resolvesTags }] = mirrors;
  assertEquals([caFile, resolvesTags], [undefined, true]);
});

Deno.test("findMirrors() reads only the first directory that has a hosts.toml for the registry", async () => {
  const host = (name: string) => `[host."https://${name}.lan"]`;
  await using dir = await temporaryDir();
  for (const [name, of] of [["a", "_default"], ["b", "reg"]]) {
    await Deno.mkdir(join(dir.path, name, of), { recursive: true });
    await Deno.writeTextFile(
      join(dir.path, name, of, "hosts.toml"),
      host(name),
    );
  }
  await Deno.writeTextFile(join(dir.path, "file"), "");
  const mirrors = async (...names: string[]) => {
    const dirs = names.map((name) => join(dir.path, name)).join(":");
    const env = new Map([["TOOLSMITH_REGISTRY_CONFIG", dirs]]);
    return bases({ mirrors: await findMirrors("reg:5000", env) });
  };
  assertEquals(await mirrors("a", "b"), ["https://a.lan/v2"]);
  // A file in place of a directory counts as missing.
  assertEquals(await mirrors("file", "b", "a"), ["https://a.lan/v2"]);
  assertEquals(await mirrors("b"), []);
});

Deno.test("findMirrors() returns a mirror from TOOLSMITH_MIRRORS as one that resolves tags and has no CA file", async () => {
  const { mirrors } = await found("reg", {}, "reg=http://x.lan");
  assertEquals(mirrors, [{ baseUrl: "http://x.lan/v2", resolvesTags: true }]);
});

Deno.test("findMirrors() throws file_unreadable for an existing hosts.toml that cannot be read", async () => {
  await using dir = await temporaryDir();
  await Deno.mkdir(join(dir.path, "reg", "hosts.toml"), { recursive: true });
  const env = new Map([["TOOLSMITH_REGISTRY_CONFIG", dir.path]]);
  const { message } = await expectFailure(
    "file_unreadable",
    () => findMirrors("reg", env),
  );
  assertStringIncludes(message, join("reg", "hosts.toml"));
});

Deno.test("findMirrors() returns no mirrors for an empty hosts.toml", async () => {
  assertEquals((await found("reg", { reg: "" })).mirrors, []);
});

Deno.test({
  name:
    "findMirrors() returns no mirrors from a directory without read permission",
  permissions: { read: ["/nonexistent"], write: true },
  async fn() {
    const dir = await Deno.makeTempDir();
    try {
      await Deno.mkdir(join(dir, "_default"));
      await Deno.writeTextFile(join(dir, "_default", "hosts.toml"), "[");
      const env = new Map([["TOOLSMITH_REGISTRY_CONFIG", dir]]);
      assertEquals(await findMirrors("reg", env), []);
    } finally {
      await Deno.remove(dir, { recursive: true });
    }
  },
});

Deno.test("findMirrors() skips a mirror URL with a password and does not print the password", async () => {
  const addresses = ["http://me:s3cret@a.lan", "https://:s3cret@a.lan"];
  for (const address of addresses) {
    const { mirrors, warnings } = await found("reg", {
      reg: `[host."${address}"]`,
    });
    assertEquals([mirrors, warnings.length], [[], 1]);
    assertMatch(warnings[0], /^Skipping mirror a\.lan: a password in/);
    assert(!warnings[0].includes("s3cret"));
    const variable = `reg=${address}`;
    const { message } = await expectFailure(
      "usage",
      () => found("reg", {}, variable),
    );
    assert(!message.includes("s3cret"), message);
  }
});

Deno.test("findMirrors() names the host and hosts.toml in warnings and errors", async () => {
  const files = {
    reg: '[host."https://a.lan:1"]\n[host."https://a.lan:1".header]\nx = "y"',
  };
  const { mirrors, warnings, dir } = await found("reg", files);
  assertEquals(mirrors, []);
  const path = join(dir, "reg", "hosts.toml");
  assertEquals(warnings, [
    `Skipping mirror a.lan:1: header in ${path} is not supported`,
  ]);
  const broken = await expectFailure(
    "file_unreadable",
    () => found("reg", { reg: 'server = "a"\nx = secret' }),
  );
  assertMatch(
    broken.message,
    /^Cannot read .*reg.hosts\.toml: not TOML \(line 2, column 4\)$/,
  );
  const wrong = await expectFailure("usage", () => found("reg", {}, "reg=x"));
  assertEquals(
    wrong.message,
    'Cannot use the mirror "reg=x" in TOOLSMITH_MIRRORS',
  );
  const secret = await expectFailure(
    "usage",
    () => found("reg", {}, "reg=https://u:p@host"),
  );
  assertMatch(secret.message, /"reg=https:\/\/…@host"/);
});
