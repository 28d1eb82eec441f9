/**
 * What loading a trusted root over the network needs. Its packages read the whole
 * environment when they are imported.
 *
 * @module
 */
export { getTrustedRoot } from "@sigstore/tuf";
