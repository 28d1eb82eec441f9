/**
 * The reason why a blob cannot be read by ranges.
 *
 * @module
 */

/** A source whose ranges cannot be used; `oras pull` may still get the blob. */
export class RangesUnavailable extends Error {
  /**
   * Makes a reason.
   *
   * @param reason What stands in the way, without secrets; it follows a colon.
   * @param options The error that led to this one.
   */
  constructor(reason: string, options?: ErrorOptions) {
    super(reason, options);
    this.name = "RangesUnavailable";
  }
}
