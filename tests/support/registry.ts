/** A real registry on loopback for one test. */
import { type RunningProcess, spawnProcess } from "../../lib/system/process.ts";
import { issueCertificate } from "./certificates.ts";
import { foundTools } from "./parts.ts";
import { startTokenServer, type TokenRules } from "./token_server.ts";

/** The only user of a registry with authentication. */
export const USERNAME = "tester";
/** That user's password, with characters that careless quoting breaks. */
export const PASSWORD = "let me: in$";
// A precomputed bcrypt hash, the only kind that the registry accepts.
const HTPASSWD =
  `${USERNAME}:$2a$04$Z5apvX2erjjoBUxRtyVwie4eERiPkFxEkX4pCv/TTMzDH2dRmbd4i\n`;

/** Options of {@linkcode startRegistry}. */
export interface RegistryOptions
  extends Omit<TokenRules, "username" | "password"> {
  /** The authentication scheme. @default {"none"} */
  auth?: "none" | "basic" | "token";
  /** Serve HTTPS, with a certificate of a private authority. @default {false} */
  tls?: boolean;
  /** Makes it a pull-through cache of the registry at this URL. @default {undefined} */
  upstream?: string;
  /** Host names in that certificate besides loopback's. @default {[]} */
  names?: string[];
}

/** A running registry. */
export interface Registry extends AsyncDisposable {
  /** Address and port, for references. */
  readonly host: string;
  /** The URL: scheme, address and port. */
  readonly url: string;
  /** Its storage directory. */
  readonly storage: string;
  /** The private authority's certificate, for HTTPS. */
  readonly caFile: string | undefined;
  /** oras flags to reach it: `--plain-http`, or `--ca-file` with the path. */
  readonly orasFlags: string[];
  /** Stops it; its storage remains until it is disposed. Idempotent. */
  stop(): Promise<void>;
}

/**
 * Starts the registry program, and waits until it listens. Tests that use it
 * declare `requires("registry")`, and `openssl` too for tokens and HTTPS.
 *
 * @returns The running registry, to be disposed.
 */
export async function startRegistry(
  options: RegistryOptions = {},
): Promise<Registry> {
  await using undo = new AsyncDisposableStack();
  const dir = await Deno.makeTempDir({ prefix: "toolsmith-registry-" });
  undo.defer(() => Deno.remove(dir, { recursive: true }));

  const { auth = "none", tls = false, upstream } = options;
  const certificate = tls || auth === "token"
    ? await issueCertificate(dir, options.names)
    : undefined;
  const tokens = auth === "token"
    ? undo.use(
      await startTokenServer(certificate!, {
        ...options,
        username: USERNAME,
        password: PASSWORD,
      }),
    )
    : undefined;
  await Deno.writeTextFile(`${dir}/htpasswd`, HTPASSWD);
  const { realm, service, issuer } = tokens ?? {};
  const storage = `${dir}/storage`;
  const config = {
    version: "0.1",
    log: { level: "info", accesslog: { disabled: true } },
    storage: {
      filesystem: { rootdirectory: storage },
      delete: { enabled: true },
    },
    proxy: upstream === undefined ? undefined : { remoteurl: upstream },
    http: {
      addr: "127.0.0.1:0",
      tls: tls
        ? { certificate: certificate!.certFile, key: certificate!.keyFile }
        : undefined,
    },
    auth: {
      none: undefined,
      basic: { htpasswd: { realm: "test", path: `${dir}/htpasswd` } },
      token: {
        token: { realm, service, issuer, rootcertbundle: certificate?.caFile },
      },
    }[auth],
  };
  // JSON is valid YAML.
  await Deno.writeTextFile(`${dir}/config.yml`, JSON.stringify(config));

  const { host, child } = await listen(`${dir}/config.yml`);
  undo.use(child);
  const caFile = tls ? certificate!.caFile : undefined;
  const all = undo.move();
  return {
    host,
    url: `${tls ? "https" : "http"}://${host}`,
    storage,
    caFile,
    orasFlags: caFile ? ["--ca-file", caFile] : ["--plain-http"],
    stop: async () => {
      await child.stop();
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/**
 * Starts the program, which chooses a free port and logs it. The log is a file, so
 * that no pipe outlives the test.
 */
async function listen(
  config: string,
): Promise<{ host: string; child: RunningProcess }> {
  const log = `${config}.log`;
  await Deno.writeTextFile(log, "");
  const child = spawnProcess("sh", {
    args: [
      "-c",
      'exec "$0" serve "$1" 2>"$2"',
      foundTools.registry!,
      config,
      log,
    ],
    input: "held",
    env: { OTEL_TRACES_EXPORTER: "none" },
  });
  let ended = false;
  child.ended.then(() => ended = true);
  for (;;) {
    const text = await Deno.readTextFile(log);
    const host = /listening on (127\.0\.0\.1:\d+)/.exec(text);
    if (host) return { host: host[1], child };
    if (ended) throw new Error(`The registry ended:\n${text}`);
    await new Promise((done) => setTimeout(done, 5));
  }
}
