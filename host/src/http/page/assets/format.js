// Sizes, times and numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const bytes = (count) => {
  if (count === null || count === undefined) return "unknown";
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
};

export const span = (milliseconds) => {
  if (milliseconds === null || milliseconds === undefined) return "";
  const ms = Math.max(0, milliseconds);
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
};

// The same where it counts seconds that pass: without parts of them.
export const seconds = (milliseconds) => (milliseconds < 120000 ? `${Math.max(0, Math.round(milliseconds / 1000))} s` : span(milliseconds));

const two = (number) => String(number).padStart(2, "0");

export const clock = (milliseconds) => {
  const at = new Date(milliseconds);
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
};

export const rate = (perSecond) => (perSecond >= 100 ? Math.round(perSecond).toString() : perSecond.toFixed(1));

export const plural = (count, one, several) => `${count} ${count === 1 ? one : several}`;
