/**
 * Servers of what users' programs fetch over a network: a Git repository, packages of
 * Python, npm and Debian, a WebSocket; and one that receives mail.
 */
import { assertEquals } from "@std/assert";
import { dirname, join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { runProcess } from "../../lib/system/process.ts";
import type { Certificate } from "./certificates.ts";

/**
 * Makes a Git repository, of its files a Python wheel and an npm package, and a Debian
 * package. All are named `greeting`, and print `hello`.
 *
 * @param dir The directory that `https://site.test/` will show.
 */
export async function fillSite(dir: string) {
  const repository = join(dir, "git/greeting");
  await writeFiles(repository, {
    "greeting.py": 'print("hello")\n',
    "greeting-1.0.dist-info/METADATA":
      "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
    "greeting-1.0.dist-info/WHEEL":
      "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "greeting-1.0.dist-info/RECORD": "",
    "index.js": 'console.log("hello");\n',
    "package.json": '{ "name": "greeting", "version": "1.0.0" }\n',
  });
  const user = ["-c", "user.name=a", "-c", "user.email=a@site.test"];
  await run("git", ["init", "-q"], repository);
  await run("git", ["add", "."], repository);
  await run("git", [...user, "commit", "-qm", "Say hello"], repository);
  const wheel = "greeting-1.0-py3-none-any.whl";
  await writeFiles(dir, {
    hello: "hello\n",
    "pip/greeting/index.html": `<a href="/pip/${wheel}">${wheel}</a>`,
    "npm/greeting": JSON.stringify({
      name: "greeting",
      "dist-tags": { latest: "1.0.0" },
      versions: {
        "1.0.0": {
          ...{ name: "greeting", version: "1.0.0" },
          dist: { tarball: "https://site.test/npm/greeting.tgz" },
        },
      },
    }),
  });
  const archive = ["archive", "HEAD", "-o"];
  await run(
    "git",
    [...archive, join(dir, "pip", wheel), "--format=zip"],
    repository,
  );
  const tarball = join(dir, "npm/greeting.tgz");
  await run("git", [...archive, tarball, "--prefix=package/"], repository);
  await makeDebianRepository(join(dir, "apt"), join(dir, "deb"));
}

async function makeDebianRepository(dir: string, tree: string) {
  const control =
    "Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@site.test>\nDescription: says hello\n";
  await writeFiles(tree, {
    "DEBIAN/control": control,
    "usr/bin/greeting": "#!/bin/sh\necho hello\n",
  });
  await Deno.chmod(join(tree, "usr/bin/greeting"), 0o755);
  await Deno.mkdir(dir);
  const deb = join(dir, "greeting.deb");
  await run("dpkg-deb", ["--root-owner-group", "--build", tree, deb], dir);
  const { size } = await Deno.stat(deb);
  const sha256 = await sha256OfChunks(readFileChunks(deb));
  const entry = `Filename: ./greeting.deb\nSize: ${size}\nSHA256: ${sha256}\n`;
  await writeFiles(dir, { Packages: control + entry });
}

/** Serves what {@linkcode fillSite} made; with a certificate, over HTTPS. */
export function startSite(dir: string, certificate?: Certificate) {
  const tls = certificate && {
    cert: Deno.readTextFileSync(certificate.certFile),
    key: Deno.readTextFileSync(certificate.keyFile),
  };
  return Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {}, ...tls },
    async (request) => {
      const path = decodeURIComponent(new URL(request.url).pathname);
      if (request.headers.get("upgrade") === "websocket") {
        const { socket, response } = Deno.upgradeWebSocket(request);
        socket.onmessage = ({ data }) =>
          socket.send(`${data.length} characters`);
        return response;
      }
      if (path.startsWith("/git/")) return await answerGit(request, dir);
      if (request.method === "PUT") {
        return new Response(`${(await request.bytes()).length} bytes\n`);
      }
      const isPage = path.endsWith("/");
      const file = join(dir, isPage ? `${path}index.html` : path);
      const bytes = await Deno.readFile(file).catch(() => null);
      return new Response(bytes, {
        status: bytes ? 200 : 404,
        headers: isPage ? { "content-type": "text/html" } : {},
      });
    },
  );
}

/** Answers with Git's own server. */
async function answerGit(request: Request, dir: string): Promise<Response> {
  const { pathname, search } = new URL(request.url);
  const { headers } = request;
  const { stdout, stdoutBytes } = await runProcess("git", {
    args: ["http-backend"],
    input: { bytes: await request.bytes() },
    env: {
      ...{ GIT_PROJECT_ROOT: dir, GIT_HTTP_EXPORT_ALL: "1" },
      ...{ PATH_INFO: pathname, QUERY_STRING: search.slice(1) },
      REQUEST_METHOD: request.method,
      CONTENT_TYPE: headers.get("content-type") ?? "",
      HTTP_CONTENT_ENCODING: headers.get("content-encoding") ?? "",
      GIT_PROTOCOL: headers.get("git-protocol") ?? "",
    },
  });
  const [head] = stdout.split("\r\n\r\n", 1);
  const fields = head.split("\r\n").map((line) => line.split(": "));
  const { Status: status = "200", ...rest } = Object.fromEntries(fields);
  return new Response(stdoutBytes.slice(head.length + 4), {
    status: parseInt(status),
    headers: rest,
  });
}

/** Receives mail by SMTP, where the server speaks first. */
export function startMailServer() {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const received: string[] = [];
  const done = (async () => {
    for await (const connection of listener) {
      await receiveMail(connection, (mail) => received.push(mail));
    }
  })();
  return {
    port: listener.addr.port,
    received,
    async [Symbol.asyncDispose]() {
      listener.close();
      await done;
    },
  };
}

async function receiveMail(
  { readable, writable }: Deno.Conn,
  onMail: (mail: string) => void,
) {
  const writer = writable.getWriter();
  const say = (line: string) =>
    writer.write(new TextEncoder().encode(`${line}\r\n`));
  await say("220 site.test");
  let rest = "";
  let mail: string | undefined;
  for await (const part of readable.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split("\r\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (mail === undefined) {
        if (line === "DATA") mail = "";
        await say(line === "DATA" ? "354 go on" : "250 site.test");
      } else if (line !== ".") {
        mail += `${line}\r\n`;
      } else {
        onMail(mail);
        mail = undefined;
        await say("250 received");
      }
    }
  }
}

/** Writes files, and makes their directories. */
export async function writeFiles(dir: string, files: Record<string, string>) {
  for (const [name, text] of Object.entries(files)) {
    const path = join(dir, name);
    await Deno.mkdir(dirname(path), { recursive: true });
    await Deno.writeTextFile(path, text);
  }
}

async function run(program: string, args: string[], cwd: string) {
  const { code, stderr } = await runProcess(program, { args, cwd });
  assertEquals(code, 0, stderr);
}
