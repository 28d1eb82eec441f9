/**
 * A real registry on loopback for one test.
 *
 * @module
 */
import { type Child, spawn } from "../../lib/system/process.ts";
import { issueCertificate } from "./certificates.ts";
import { parts } from "./parts.ts";
import { startTokenServer, type TokenRules } from "./token_server.ts";

/** The one user that a registry with authentication knows. */
export const USERNAME = "tester";
/** That user's password; it holds what a careless program would trip over. */
export const PASSWORD = "let me: in$";
// The registry takes bcrypt only, which nothing here can compute.
const HTPASSWD =
  `${USERNAME}:$2a$04$Z5apvX2erjjoBUxRtyVwie4eERiPkFxEkX4pCv/TTMzDH2dRmbd4i\n`;

/** What kind of registry {@linkcode startRegistry} starts. */
export interface RegistryOptions
  extends Omit<TokenRules, "username" | "password"> {
  /** How clients say who they are. @default {"none"} */
  auth?: "none" | "basic" | "token";
  /** Serve HTTPS, with a certificate of a private authority. @default {false} */
  tls?: boolean;
  /** Be a pull-through cache of the registry at this address. @default {undefined} */
  upstream?: string;
  /** Host names in that certificate besides loopback's. @default {[]} */
  names?: string[];
}

/** A running registry. */
export interface Registry extends AsyncDisposable {
  /** Address and port: what a reference begins with. */
  readonly host: string;
  /** The same with its scheme. */
  readonly url: string;
  /** The directory that it keeps its data in. */
  readonly storage: string;
  /** The private authority's certificate, where it serves HTTPS. */
  readonly caFile: string | undefined;
  /** What oras needs to reach it: `--plain-http`, or `--ca-file` and its path. */
  readonly orasFlags: string[];
  /** Ends it; its storage stays until it is disposed of. Safe to repeat. */
  stop(): Promise<void>;
}

/**
 * Starts the registry program, and waits until it listens. Tests that use it
 * declare `needs("registry")`, and `openssl` too for tokens and HTTPS.
 *
 * @param options Which kind.
 * @returns The running registry, to be disposed of.
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
  // JSON is YAML as well.
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

/** Starts the program; it chooses a free port itself, and its log names it. */
async function listen(
  config: string,
): Promise<{ host: string; child: Child }> {
  let log = "";
  const decoder = new TextDecoder();
  const listening = Promise.withResolvers<string>();
  const child = spawn(parts.registry!, {
    args: ["serve", config],
    input: "held",
    env: { OTEL_TRACES_EXPORTER: "none" },
    stderr: (chunk) => {
      log = (log + decoder.decode(chunk, { stream: true })).slice(-4000);
      const host = log.match(/listening on (127\.0\.0\.1:\d+)/);
      if (host) listening.resolve(host[1]);
    },
  });
  child.ended.then(() =>
    listening.reject(new Error(`The registry ended:\n${log}`))
  );
  const patience = setTimeout(() => {
    listening.reject(new Error(`The registry does not listen:\n${log}`));
  }, 60_000);
  try {
    return { host: await listening.promise, child };
  } catch (error) {
    await child.stop();
    throw error;
  } finally {
    clearTimeout(patience);
  }
}
