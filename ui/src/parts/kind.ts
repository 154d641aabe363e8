/** What a device is, as far as its icon goes. */
export type Kind = "disk" | "stick" | "image" | "optical" | "usb";

/** The kind of a device or of a channel, of which less is known. */
export function kindOf(device: { class: string; kind?: string | null; removable?: boolean; path?: string }): Kind {
  if (device.class === "optical") return "optical";
  if (device.class === "usb") return "usb";
  if (device.path !== undefined && !device.path.startsWith("/dev/")) return "image";
  return device.removable === true ? "stick" : "disk";
}
