/**
 * Judges what a guest sends over a connection to an allowed name: TLS and plain HTTP say
 * for which host they are (RFC 6066, section 3; RFC 9112). Nothing is forwarded before it
 * is judged.
 */
import { serverNameOf } from "./_client_hello.ts";
import { normalizeName, RefusedError } from "./rules.ts";

/** The guest's side of a connection. */
export interface GuestStream {
  /** The allowed name, and the port that the guest connected to. */
  host: string;
  port: number;
  /** The guest's next bytes; `undefined` at the end. */
  read(): Promise<Uint8Array | undefined>;
  write(bytes: Uint8Array): Promise<void>;
  /** The first 12 bytes of the server's answer; fewer if it ends earlier. */
  answer: Promise<string>;
}

const TLS_PORT = 443, HTTP_PORT = 80;
const TLS_HANDSHAKE = 22;
const MAX_HEAD_BYTES = 65536;
const REQUEST_PATTERN =
  /^([!#$%&'*+.^_`|~\w-]+) ([!-~\x80-\xff]+) HTTP\/1\.([01])$/;
/** Name, and value without the white space around it, in linear time. */
const FIELD_PATTERN =
  /^([!#$%&'*+.^_`|~\w-]+):[\t ]*(?![\t ])([!-~\x80-\xff]*(?:[\t ]+[!-~\x80-\xff]+)*)[\t ]*$/;
const FRAMING_PATTERN = /^(host|content-length|transfer-encoding|upgrade)$/;

/**
 * Forwards what the guest sends, to its end.
 *
 * @throws {RefusedError} When it is for another host, or for an unknown one.
 */
export async function forwardJudged(stream: GuestStream): Promise<void> {
  const held = new HeldBytes(stream);
  try {
    const [first] = await held.atLeast(1);
    // Other records of TLS may come before a ClientHello for some servers.
    const isTls = first === TLS_HANDSHAKE ||
      first >= 20 && first < 25 && (await held.atLeast(2))[1] === 3;
    if (isTls) {
      await forwardClientHello(held, stream.host);
      if (isHelloRetryRequest(await stream.answer)) {
        await forwardSecondClientHello(held, stream.host);
      }
    } else if (stream.port === TLS_PORT) {
      throw new RefusedError("port 443 without TLS");
    } else if (stream.port === HTTP_PORT || await looksLikeHttp(held)) {
      await forwardHttp(held, stream);
    }
    await held.forward(Infinity);
  } catch (error) {
    if (!(error instanceof GuestEndedError)) throw error;
  }
}

/** The guest has sent all; what is held and incomplete is dropped. */
class GuestEndedError extends Error {}

/** Bytes of the guest that are not forwarded yet. */
class HeldBytes {
  bytes: Uint8Array = new Uint8Array();

  constructor(private readonly stream: GuestStream) {}

  /** Waits for more bytes. */
  async more(): Promise<void> {
    const next = await this.stream.read();
    if (!next) throw new GuestEndedError();
    const { length } = this.bytes;
    if (length === 0) return void (this.bytes = next);
    const all = new Uint8Array(length + next.length);
    all.set(this.bytes);
    all.set(next, length);
    this.bytes = all;
  }

  async atLeast(count: number): Promise<Uint8Array> {
    while (this.bytes.length < count) await this.more();
    return this.bytes;
  }

  /** A line from an offset, without its CRLF. */
  async line(start = 0): Promise<string> {
    let end = -1;
    for (let from = start; end < 0;) {
      end = this.bytes.indexOf(10, from);
      from = this.bytes.length;
      const tooLong = (end < 0 ? from : end) > MAX_HEAD_BYTES;
      if (tooLong) throw new RefusedError("HTTP head of more than 64 KiB");
      if (end < 0) await this.more();
    }
    const line = latin1(this.bytes.subarray(start, end + 1));
    if (/^[^\r]*\r\n$/.test(line)) return line.slice(0, -2);
    throw new RefusedError("HTTP line without CRLF");
  }

  /** Forwards the next bytes, as they arrive. */
  async forward(count: number): Promise<void> {
    while (count > 0) {
      const part = (await this.atLeast(1)).subarray(0, count);
      this.bytes = this.bytes.subarray(part.length);
      count -= part.length;
      await this.stream.write(part);
    }
  }
}

/** It is a ServerHello with a random value of its own (RFC 8446, section 4.1.3). */
function isHelloRetryRequest(answer: string): boolean {
  return answer[5] === "\x02" && answer[11] === "\xcf";
}

async function forwardSecondClientHello(held: HeldBytes, host: string) {
  while (true) {
    const [type, , , high, low] = await held.atLeast(5);
    // Early data, which the server skips, and a change of cipher, which means nothing.
    if (type !== 23 && type !== 20) break;
    await held.forward(5 + (high << 8 | low));
  }
  await forwardClientHello(held, host);
}

/** Collects a handshake message out of its records (RFC 8446, section 5.1). */
async function forwardClientHello(held: HeldBytes, host: string) {
  const message: number[] = [];
  for (let at = 0;;) {
    const [type, major, , high, low] = (await held.atLeast(at + 5)).subarray(
      at,
    );
    const length = high << 8 | low;
    const isHandshake = type === TLS_HANDSHAKE && major === 3;
    if (!isHandshake || length === 0 || at + length > MAX_HEAD_BYTES) {
      throw new RefusedError("TLS without a readable ClientHello");
    }
    const end = at + 5 + length;
    message.push(...(await held.atLeast(end)).subarray(at + 5, end));
    at = end;
    const size = 4 + (message[1] << 16 | message[2] << 8 | message[3]);
    if (message.length < Math.max(4, size)) continue;
    const name = serverNameOf(Uint8Array.from(message));
    if (normalizeName(name) === host) return await held.forward(at);
    throw new RefusedError(`TLS server name ${JSON.stringify(name)}`);
  }
}

/**
 * Could the first line be a request, for any server? Other protocols may wait for an answer
 * before they send a whole line.
 */
async function looksLikeHttp(held: HeldBytes): Promise<boolean> {
  // Servers skip empty lines before a request. Some accept control characters in a target,
  // but then only letters in a method.
  let allowed = /[!-~\s]/;
  let isMethod = true, isLetters = true;
  for (let at = 0; at < MAX_HEAD_BYTES; at++) {
    if (at === held.bytes.length) await held.more();
    const character = String.fromCharCode(held.bytes[at]);
    const isSpace = /\s/.test(character);
    if (isSpace && at === 0) return true;
    if (character === "\n") {
      return /HTTP\//i.test(latin1(held.bytes.subarray(0, at)));
    }
    if (!allowed.test(character)) return false;
    isLetters &&= !isMethod || isSpace || /[a-z_-]/i.test(character);
    if (isMethod && isSpace) {
      isMethod = false;
      allowed = isLetters ? /[^\0]/ : /[\t\r -~\x80-\xff]/;
    }
  }
  return true;
}

/** Returns when the connection is no longer HTTP. */
async function forwardHttp(held: HeldBytes, stream: GuestStream) {
  for (let requests = 1;; requests++) {
    const lines: string[] = [];
    let headBytes = 0;
    do {
      lines.push(await held.line(headBytes));
      // At once, as nothing more may follow.
      if (!REQUEST_PATTERN.test(lines[0])) {
        throw new RefusedError("not an HTTP/1 request");
      }
      headBytes += lines.at(-1)!.length + 2;
    } while (lines.at(-1) !== "");
    const { bodyBytes, isUpgrade } = judgeHead(lines.slice(0, -1), stream);
    if (isUpgrade && requests > 1) {
      throw new RefusedError("HTTP upgrade on a used connection");
    }
    await held.forward(headBytes);
    if (bodyBytes === "chunked") await forwardChunks(held);
    else await held.forward(bodyBytes);
    if (isUpgrade && await stream.answer === "HTTP/1.1 101") return;
  }
}

async function forwardChunks(held: HeldBytes) {
  for (let size = -1; size !== 0;) {
    const line = await held.line();
    if (!/^[0-9a-f]{1,8}$/i.test(line)) throw new RefusedError("HTTP chunk");
    size = parseInt(line, 16);
    await held.forward(line.length + 2 + size);
    const [cr, lf] = await held.atLeast(2);
    if (cr !== 13 || lf !== 10) throw new RefusedError("HTTP chunk or trailer");
    await held.forward(2);
  }
}

/** Refuses what two readers could understand differently. */
function judgeHead([first, ...rest]: string[], stream: GuestStream) {
  const [, method, target, version] = REQUEST_PATTERN.exec(first)!;
  if (/^connect$/i.test(method)) throw new RefusedError("HTTP CONNECT");
  const fields = new Map<string, string>();
  for (const line of rest) {
    const [, name, value] = FIELD_PATTERN.exec(line) ?? [];
    if (name === undefined) throw new RefusedError("HTTP header line");
    // Some servers read "_" as "-".
    const key = name.toLowerCase().replaceAll("_", "-");
    if (!FRAMING_PATTERN.test(key)) continue;
    if (name.includes("_")) throw new RefusedError("HTTP header line");
    if (fields.has(key)) {
      throw new RefusedError(`HTTP with two ${name} headers`);
    }
    fields.set(key, value);
  }
  const { host, port } = stream;
  const assertOwn = (authority: string, what: string) => {
    const [, name, own] = /^([^:]+)(?::(\d{1,5}))?$/.exec(authority) ?? [];
    const isOwn = name !== undefined && normalizeName(name) === host;
    if (isOwn && (own === undefined || Number(own) === port)) return;
    throw new RefusedError(`HTTP ${what} ${JSON.stringify(authority)}`);
  };
  assertOwn(fields.get("host") ?? "", "Host");
  const [, authority] = /^http:\/\/([^/]*)/i.exec(target) ?? [];
  if (authority !== undefined) assertOwn(authority, "target");
  else if (!/^(\/|\*$)/.test(target)) throw new RefusedError("HTTP target");
  const length = fields.get("content-length");
  const coding = fields.get("transfer-encoding");
  const isUnclear = length !== undefined && !/^\d{1,15}$/.test(length) ||
    coding !== undefined &&
      (length !== undefined || version === "0" || !/^chunked$/i.test(coding));
  if (isUnclear) throw new RefusedError("HTTP body of unclear length");
  const bodyBytes = coding ? "chunked" as const : Number(length ?? 0);
  // Some servers take it for the next request.
  if (/^(get|head)$/i.test(method) && bodyBytes !== 0) {
    throw new RefusedError(`HTTP ${method} with a body`);
  }
  const upgrade = fields.get("upgrade");
  if (upgrade !== undefined && !/^websocket$/i.test(upgrade)) {
    throw new RefusedError(`HTTP upgrade to ${JSON.stringify(upgrade)}`);
  }
  return { bodyBytes, isUpgrade: upgrade !== undefined };
}

/** Each byte as the character of its number, which TextDecoder does not do. */
function latin1(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes);
}
