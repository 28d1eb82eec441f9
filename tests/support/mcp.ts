/**
 * A client of `toolsmith mcp`: the SDK's own, over the pipes of a real process.
 */
import { type CallToolResult, Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { changeTimerDelays } from "./timers.ts";
import { cleanEnvironment, cliCommand } from "./workspace.ts";

/** How {@linkcode connectMcp} connects. */
export interface ConnectMcpOptions {
  /** Flags of the server. @default {[]} */
  flags?: string[];
  /** Its variables. */
  env?: Record<string, string>;
  /** Deno's permission flags. @default {["-P=run"]} */
  permissions?: string[];
  /** The protocol's revision. @default {"legacy"} the newest with a handshake */
  mode?: "legacy" | "auto" | { pin: string };
}

/** A connected client. */
export interface McpClient extends AsyncDisposable {
  client: Client;
  /** Calls a tool. */
  call(
    name: string,
    args?: Record<string, unknown>,
    options?: Parameters<Client["callTool"]>[1],
  ): Promise<CallToolResult>;
  /** The server's process. */
  pid: number;
  /** What the server has written to standard error. */
  stderrText(): string;
}

/** A command's result. */
export interface CommandFields {
  code: number;
  signal: string | null;
  stdout: string;
  stderr: string;
  truncated: boolean;
  durationMs: number;
  notice?: string;
}

/** Defines a test; the SDK's client leaves a timer when it has closed its server. */
export function testWithClient(
  name: string,
  fn: (t: Deno.TestContext) => Promise<void>,
  options: { ignore?: boolean } = {},
): void {
  const sanitize = { sanitizeOps: false, sanitizeResources: false };
  Deno.test({ name, fn, ...sanitize, ...options });
}

/** A guest in a busy host may be slow: no request times out. */
const REQUEST = { timeout: 2 ** 31 - 1 };

/** Starts a server in a workspace and connects to it. */
export async function connectMcp(
  cwd: string,
  options: ConnectMcpOptions = {},
): Promise<McpClient> {
  const { flags = [], permissions = ["-P=run"], mode = "legacy" } = options;
  const transport = new StdioClientTransport({
    command: Deno.execPath(),
    args: await cliCommand(["mcp", ...flags], permissions),
    env: { ...cleanEnvironment(), ...options.env },
    cwd,
    stderr: "pipe",
  });
  let stderr = "";
  transport.stderr?.on("data", (chunk) => stderr += chunk);
  const client = new Client({ name: "test", version: "1.0.0" }, {
    versionNegotiation: { mode },
  });
  await client.connect(transport, REQUEST).catch((error) => {
    throw new Error(`${error.message}\n${stderr}`);
  });
  return {
    client,
    async call(name, args = {}, more = {}) {
      const request = { name, arguments: args };
      return await client.callTool(request, { ...REQUEST, ...more });
    },
    pid: transport.pid!,
    stderrText: () => stderr,
    async [Symbol.asyncDispose]() {
      // The SDK kills a server that takes longer to end its VM.
      using _timers = changeTimerDelays((ms) => ms === 2_000 ? 600_000 : ms);
      await client.close();
    },
  };
}

/** The fields of a command that ran. */
export function fieldsOf(result: CallToolResult): CommandFields {
  const { isError, content, structuredContent } = result;
  if (isError) throw new Error(JSON.stringify(content));
  return structuredContent as unknown as CommandFields;
}

/** The fields of an error. */
export function errorOf({ isError, content }: CallToolResult) {
  const [block] = content;
  if (!isError || block.type !== "text") throw new Error("not an error");
  return JSON.parse(block.text);
}
