/**
 * What the server needs of the packages of the Model Context Protocol. They are large,
 * so this module is imported dynamically; the bundle keeps it compressed until then.
 *
 * @module
 */
export { McpServer } from "@modelcontextprotocol/server";
export {
  serveStdio,
  StdioServerTransport,
} from "@modelcontextprotocol/server/stdio";
export * as z from "zod";
