import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import type { ErrorCode } from "../../lib/errors.ts";
import { TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import {
  pollDelayMs,
  type PollOptions,
  pollUntilServed,
} from "../../lib/publish/verify.ts";
import { sha256OfText, sha256ToDigest } from "../../lib/system/digest.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";
import { replaceMethod } from "../support/replace_method.ts";

const IMAGE = "image.qcow2";
const SHA256 = await sha256OfText("image");
const layer = (title: string, hex: string) => ({
  mediaType: "a/b",
  digest: sha256ToDigest(hex),
  size: 5,
  annotations: { [TITLE_ANNOTATION]: title },
});
const manifest = (...layers: object[]) =>
  JSON.stringify({ schemaVersion: 2, layers });
const RIGHT = manifest(layer("notes", "b".repeat(64)), layer(IMAGE, SHA256));

const NOT_FOUND = "echo 'Error: x: not found' >&2; exit 1";
const print = (text: string) => `printf '%s' '${text}'; exit 0`;

/** Polls with a fake oras that runs these scripts in turn; the last one repeats. */
async function poll(
  answers: string[],
  given: PollOptions & {
    serves?: string;
    host?: string;
    signal?: AbortSignal;
    onPoll?: () => void;
  } = {},
) {
  const { serves = RIGHT, host, signal, onPoll, ...options } = given;
  const cases = answers.map((answer, at) =>
    `${at === answers.length - 1 ? "*" : at + 1}) ${answer};;`
  ).join("\n");
  await using fake = await fakeOras(
    `echo >> "$0.count"\ncase $(grep -c '' "$0.count") in\n${cases}\nesac`,
  );
  const events: Record<string, unknown>[] = [];
  const ended = await pollUntilServed({
    reference: parseReference(`${host ?? "localhost:5000"}/owner/vm:1`),
    digest: sha256ToDigest(await sha256OfText(serves)),
    path: "dist/image.qcow2",
    title: IMAGE,
    sha256: SHA256,
    image: "vm",
  }, {
    intervalMs: 1,
    ...options,
    ...{ env: fake.env, signal },
    emit(event) {
      events.push(event);
      onPoll?.();
    },
  }).then((attempts) => ({ attempts }), (error) => ({ error }));
  const { attempts, error } = ended as { attempts?: number; error?: unknown };
  const args = await fake.args();
  return { attempts, error, events, args, fails: () => Promise.reject(error) };
}

Deno.test({
  name: "pollUntilServed() emits each poll with its outcome and the next pause",
  ...shell,
  async fn() {
    const { attempts, events } = await poll([
      NOT_FOUND,
      NOT_FOUND,
      print(RIGHT),
    ]);
    const told = {
      type: "publish_poll",
      image: "vm",
      reference: "localhost:5000/owner/vm:1",
      attempts: 20,
    };
    const message = "Not found: localhost:5000/owner/vm:1 (oras: x: not found)";
    assertEquals(attempts, 3);
    assertEquals(events, [
      { ...told, attempt: 1, outcome: "waiting", message, delayMs: 1 },
      { ...told, attempt: 2, outcome: "waiting", message, delayMs: 2 },
      { ...told, attempt: 3, outcome: "served", delayMs: 0 },
    ]);
  },
});

Deno.test({
  name: "pollUntilServed() waits as long as a busy registry asks",
  ...shell,
  async fn() {
    let asked = 0;
    const stop = new AbortController();
    const headers = { "retry-after": "1" };
    const server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, signal: stop.signal, onListen() {} },
      () =>
        asked++ === 0
          ? new Response(null, { status: 429, headers })
          : new Response(RIGHT),
    );
    const busy = "echo 'Error: status code 429' >&2; exit 1";
    const host = `127.0.0.1:${server.addr.port}`;
    const { attempts, events } = await poll([busy], { host });
    stop.abort();
    await server.finished;
    assertEquals([attempts, events.map((it) => it.delayMs)], [2, [1000, 0]]);
  },
});

Deno.test({
  name:
    "pollUntilServed() stops when a busy registry asks for a wait beyond the deadline",
  ...shell,
  async fn() {
    const stop = new AbortController();
    const headers = { "retry-after": "3600" };
    const server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, signal: stop.signal, onListen() {} },
      () => new Response(null, { status: 429, headers }),
    );
    const busy = "echo 'Error: status code 429' >&2; exit 1";
    const host = `127.0.0.1:${server.addr.port}`;
    const { fails, events } = await poll([busy], { host });
    const { message } = await expectFailure("publish_timeout", fails);
    stop.abort();
    await server.finished;
    assertStringIncludes(message, "did not serve it within 600 s: ");
    assertStringIncludes(message, "answered 429 and asks to wait 60 min");
    assertEquals(events.length, 1);
  },
});

Deno.test({
  name:
    "pollUntilServed() polls `attempts` times and does not wait after the last poll",
  ...shell,
  async fn() {
    const one = await poll([NOT_FOUND], { attempts: 1 });
    const { message, hint } = await expectFailure("publish_timeout", one.fails);
    assertEquals(
      message,
      "Pushed localhost:5000/owner/vm:1, but the registry did not serve it " +
        "within 1 attempt: Not found: localhost:5000/owner/vm:1 " +
        "(oras: x: not found)",
    );
    assertStringIncludes(hint!, "--attempts N");
    assertEquals(one.events.map(({ delayMs }) => delayMs), [0]);
    const two = await poll([NOT_FOUND], { attempts: 2 });
    assertEquals(two.events.map(({ delayMs }) => delayMs), [1, 0]);
    assertStringIncludes((two.error as Error).message, "within 2 attempts: ");
  },
});

Deno.test({
  name:
    "pollUntilServed() defaults to 20 polls with growing pauses within ten minutes",
  ...shell,
  async fn() {
    const set = globalThis.setTimeout;
    const waits: number[] = [];
    const limits = new Set<number>();
    using _timers = replaceMethod(globalThis, {
      setTimeout(work: () => void, ms: number) {
        if (ms > 100_000) limits.add(ms);
        // Skip the pauses.
        else if (ms >= 6000 && ms <= 30_000) waits.push(ms), ms = 0;
        return set(work, ms);
      },
    });
    const { error } = await poll([NOT_FOUND], { intervalMs: undefined });
    assertStringIncludes((error as Error).message, "within 20 attempts");
    const pauses = Array.from(
      { length: 19 },
      (_, at) => pollDelayMs(at + 1, 6000),
    );
    assertEquals(waits, pauses);
    assert(limits.has(600_000), [...limits].join());
  },
});

Deno.test({
  name:
    "pollUntilServed() throws publish_timeout when a poll hangs until the deadline, and a cancelling signal's reason",
  ...shell,
  async fn() {
    const late = await poll(["exec sleep 60"], { deadlineMs: 200 });
    assertEquals(
      (late.error as Error).message,
      "Pushed localhost:5000/owner/vm:1, but the registry did not serve it " +
        "within 0.2 s: no answer",
    );
    await expectFailure("publish_timeout", late.fails);
    const cancel = new AbortController();
    const ended = await poll([NOT_FOUND], {
      intervalMs: 600_000,
      signal: cancel.signal,
      onPoll: () => cancel.abort(new Error("enough")),
    });
    await assertRejects(ended.fails, Error, "enough");
    assertEquals(ended.events.length, 1);
  },
});

Deno.test({
  name:
    "pollUntilServed() retries transient failures and stops at once for others",
  ...shell,
  async fn() {
    const says = (words: string) => `echo 'Error: ${words}' >&2; exit 1`;
    const passing = ["no such host", "toomanyrequests", "connection refused"];
    for (const words of [...passing, "response status code 503"]) {
      const { attempts } = await poll([says(words), print(RIGHT)]);
      assertEquals(attempts, 2, words);
    }
    const lasting: [string, ErrorCode][] = [
      ["unauthorized: x", "unauthorized"],
      ["denied: x", "forbidden"],
      ["x509: unknown authority", "tls_failed"],
      ["something else", "oras_failed"],
    ];
    for (const [words, code] of lasting) {
      const { events, fails } = await poll([says(words)]);
      await expectFailure(code, fails);
      assertEquals(events, []);
    }
    const full = await poll([says("no space left on device")]);
    const { hint } = await expectFailure("disk_full", full.fails);
    assertEquals(hint, "set TMPDIR to a directory with more free space");
    const other = await poll([says("digest mismatch")]);
    const mismatch = await expectFailure("publish_mismatch", other.fails);
    assertStringIncludes(mismatch.hint!, "another push or a caching proxy");
  },
});

Deno.test({
  name:
    "pollUntilServed() reports both digests when the manifest or the image changed",
  ...shell,
  async fn() {
    const wrong = await poll([print(manifest())]);
    const [asked, served] = await Promise.all(
      [RIGHT, manifest()].map(async (it) =>
        sha256ToDigest(await sha256OfText(it))
      ),
    );
    await expectFailure("publish_mismatch", wrong.fails);
    assertStringIncludes(
      (wrong.error as Error).message,
      `to localhost:5000/owner/vm:1: pushed manifest ${asked}, but the registry serves ${served}`,
    );
    const changes: [string, string][] = [
      [manifest(layer(IMAGE, "c".repeat(64))), sha256ToDigest("c".repeat(64))],
      [manifest(layer("other", SHA256)), "no layer titled image.qcow2"],
    ];
    for (const [serves, pushed] of changes) {
      const changed = await poll([print(serves)], { serves });
      const error = await expectFailure("publish_mismatch", changed.fails);
      assertEquals(
        error.message,
        "dist/image.qcow2 changed while it was published: its digest was " +
          `${sha256ToDigest(SHA256)}, the pushed artifact has ${pushed}`,
      );
      assertStringIncludes(error.hint!, "now names the changed file");
    }
  },
});

Deno.test({
  name:
    "pollUntilServed() emits download events for the verifying pull and compares the pulled bytes",
  ...shell,
  async fn() {
    const pull = (text: string) =>
      `if [ "$1" = pull ]; then printf '${text}' > "$out/${IMAGE}"; exit 0; fi
       ${print(RIGHT)}`;
    const right = await poll([pull("image")], { verify: "pull" });
    assertEquals(right.attempts, 1);
    const source = `oci://localhost:5000/owner/vm@${
      sha256ToDigest(await sha256OfText(RIGHT))
    }`;
    const [start] = right.events;
    assertEquals([start.type, start.image], ["download_start", "vm"]);
    assertEquals([start.source, start.bytes], [source, 10]);
    assertEquals(right.args!.at(-1), source.slice("oci://".length));
    // The temporary directory of the pull is removed.
    const into = right.args![right.args!.indexOf("--output") + 1];
    await assertRejects(() => Deno.stat(into), Deno.errors.NotFound);
    const other = await poll([pull("imagE")], { verify: "pull" });
    const error = await expectFailure("publish_mismatch", other.fails);
    const pulled = sha256ToDigest(await sha256OfText("imagE"));
    assertStringIncludes(
      error.message,
      `pushed ${sha256ToDigest(SHA256)}, pulled ${pulled}`,
    );
    const none = await poll([print(RIGHT)], { verify: "pull" });
    const missing = await expectFailure("publish_mismatch", none.fails);
    assertStringIncludes(missing.message, "the file is missing");
    const plain = await poll([print(RIGHT)], { verify: "manifest" });
    assertEquals(plain.args!.slice(0, 2), ["manifest", "fetch"]);
  },
});
