/** nginx with the configuration of docs/fleets.md, on loopback. */
import { join } from "@std/path";
import { spawnProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";
import { foundTools } from "./parts.ts";

/** A running nginx. */
export interface Nginx extends AsyncDisposable {
  /** Its address, as a mirror's. */
  readonly url: string;
}

/**
 * Starts nginx in front of a pull-through cache and waits until it listens. Tests
 * that use it declare `requires("nginx")`.
 *
 * @param upstream The cache's address.
 * @returns The running program, to be disposed of.
 */
export async function startNginx(upstream: string): Promise<Nginx> {
  await using undo = new AsyncDisposableStack();
  const dir = await Deno.makeTempDir({ prefix: "toolsmith-nginx-" });
  undo.defer(() => Deno.remove(dir, { recursive: true }));
  const port = freePort();
  let here = await Deno.readTextFile(`${PROJECT_ROOT}/docs/nginx-mirror.conf`);
  for (
    const [there, replaced] of [
      ["/var/cache/", `${dir}/`],
      ["listen 5080;", `listen 127.0.0.1:${port};`],
      ["http://127.0.0.1:5000;", `${upstream};`],
    ]
  ) {
    if (!here.includes(there)) throw new Error(`${there} is not there`);
    here = here.replaceAll(there, replaced);
  }
  await Deno.writeTextFile(join(dir, "mirror.conf"), here);
  const config = join(dir, "nginx.conf");
  await Deno.writeTextFile(
    config,
    `daemon off;
pid ${dir}/pid;
${Deno.uid() === 0 ? "user root;" : ""}
events {}
http {
  access_log off;
  proxy_temp_path ${dir}/proxy;
  client_body_temp_path ${dir}/body;
  include ${dir}/mirror.conf;
}
`,
  );
  let log = "";
  const child = undo.use(spawnProcess(foundTools.nginx!, {
    args: ["-p", dir, "-e", "stderr", "-c", config],
    stderr: (chunk) => {
      log += new TextDecoder().decode(chunk);
    },
  }));
  let ended = false;
  child.ended.then(() => ended = true);
  while (!await listens(port)) {
    if (ended) throw new Error(`nginx ended:\n${log}`);
    await sleep(20);
  }
  const all = undo.move();
  return {
    url: `http://127.0.0.1:${port}`,
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

async function listens(port: number): Promise<boolean> {
  try {
    using _ = await Deno.connect({ hostname: "127.0.0.1", port });
    return true;
  } catch {
    return false;
  }
}
