// Every message of the page to the app passes through here, in a frame of its own that the page cannot reach. Only the
// app's commands and the subscription to its news get through, so that code which found its way into the page, with one
// of its dependencies say, reaches nothing else. A message must be answered with something: a hook that throws leaves
// the page waiting, so what is not allowed becomes a command that does not exist.
const ALLOWED = new Set(["view", "call", "start_engine", "open_node", "plugin:event|listen", "plugin:event|unlisten"]);

window.__TAURI_ISOLATION_HOOK__ = (message) => {
  const command = message !== null && typeof message === "object" ? message.cmd : undefined;
  return ALLOWED.has(command) ? message : { ...message, cmd: "refused" };
};
