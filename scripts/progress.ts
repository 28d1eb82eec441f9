/**
 * Shows the running steps and their seconds: on a terminal in one line that is
 * rewritten each second, in a log with a line every 30 seconds.
 */

/** Options of {@linkcode Progress}. */
export interface ProgressOptions {
  /** Prefix of each line. @default {""} */
  prefix?: string;
  /** @default {Deno.stderr} */
  output?: Pick<typeof Deno.stderr, "writeSync" | "isTerminal">;
  /** The clock, in milliseconds. @default {performance.now} */
  now?: () => number;
}

const LOG_INTERVAL_S = 30;

/** Shows concurrent steps, and prints lines without disturbing them. */
export class Progress {
  readonly #steps = new Map<string, { since: number; said: number }>();
  readonly #prefix: string;
  readonly #output: NonNullable<ProgressOptions["output"]>;
  readonly #now: () => number;
  readonly #terminal: boolean;
  #timer?: ReturnType<typeof setInterval>;

  constructor(options: ProgressOptions = {}) {
    const { prefix = "", output = Deno.stderr } = options;
    this.#prefix = prefix;
    this.#output = output;
    this.#now = options.now ?? (() => performance.now());
    this.#terminal = output.isTerminal() && Deno.env.get("TERM") !== "dumb";
  }

  /** Prints permanent lines above the status line. */
  printLine(text: string): void {
    this.#write(
      `${this.#eraseSequence()}${this.#prefix}${text}\n${this.#statusLine()}`,
    );
  }

  /**
   * Begins a step that leaves a line; disposing the result ends it.
   *
   * @param title Such as "building oras".
   */
  beginLoggedStep(title: string): Disposable {
    if (!this.#terminal) this.printLine(title);
    const since = this.#now();
    const watched = this.beginStep(title);
    return {
      [Symbol.dispose]: () => {
        watched[Symbol.dispose]();
        const seconds = Math.floor((this.#now() - since) / 1000);
        if (this.#terminal) this.printLine(`${title}: ${seconds} s`);
      },
    };
  }

  /** Begins a step that leaves no line; disposing the result ends it. */
  beginStep(title: string): Disposable {
    this.#steps.set(title, { since: this.#now(), said: 0 });
    this.#timer ??= setInterval(() => this.refresh(), 1000);
    if (this.#terminal) this.refresh();
    return {
      [Symbol.dispose]: () => {
        this.#steps.delete(title);
        if (this.#steps.size > 0) return;
        clearInterval(this.#timer);
        this.#timer = undefined;
        if (this.#terminal) this.refresh();
      },
    };
  }

  /** Redraws the status line, or prints a log line that is due; called each second. */
  refresh(): void {
    if (this.#terminal) {
      return this.#write(this.#eraseSequence() + this.#statusLine());
    }
    for (const [title, step] of this.#steps) {
      const seconds = this.#secondsOf(title);
      if (seconds - step.said < LOG_INTERVAL_S) continue;
      step.said = seconds;
      this.printLine(`still ${title} (${seconds} s)`);
    }
  }

  #secondsOf(title: string): number {
    return Math.floor((this.#now() - this.#steps.get(title)!.since) / 1000);
  }

  #eraseSequence(): string {
    return this.#terminal ? "\r\x1b[K" : "";
  }

  #statusLine(): string {
    if (!this.#terminal || this.#steps.size === 0) return "";
    const parts = [...this.#steps.keys()]
      .map((title) => `${title} (${this.#secondsOf(title)} s)`);
    // A wrapped line could not be erased.
    const width = consoleColumns() - 1;
    return `${this.#prefix}${parts.join(", ")}`.slice(0, width);
  }

  #write(text: string): void {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) {
      at += this.#output.writeSync(bytes.subarray(at));
    }
  }
}

function consoleColumns(): number {
  try {
    return Deno.consoleSize().columns;
  } catch {
    return 80;
  }
}
