// Numbers and times as people read them. Decimal units, like the rates of the command line (20MB/s).

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const SPACE = "\u00a0";

/** Bytes with three significant digits: "90.9 MB". */
export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)}${SPACE}${UNITS[unit]}`;
}

export function rate(bytesPerSecond) {
  return `${bytes(bytesPerSecond)}/s`;
}

/** Seconds, with tenths below ten if `fine`: "6.1 s", "3 min 05 s", "2 h 05 min", "3 d 4 h". */
export function duration(seconds, { fine = false } = {}) {
  if (fine && seconds < 9.95) return `${seconds.toFixed(1)}${SPACE}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}${SPACE}s`;
  if (whole < 3600) return pair(Math.floor(whole / 60), "min", whole % 60, "s");
  if (whole < 86400) return pair(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
  return `${Math.floor(whole / 86400)}${SPACE}d ${Math.floor((whole % 86400) / 3600)}${SPACE}h`;
}

function pair(large, largeUnit, small, smallUnit) {
  return `${large}${SPACE}${largeUnit} ${String(small).padStart(2, "0")}${SPACE}${smallUnit}`;
}

/** Rounded down, so that only what is whole reads 100 %. */
export function percent(value) {
  if (value >= 100) return `100${SPACE}%`;
  return `${(Math.floor(value * 10) / 10).toFixed(1)}${SPACE}%`;
}

/** "14:03:09" if today, else "23 Nov 14:03". */
export function clock(time, now = new Date()) {
  const parts = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (time.toDateString() === now.toDateString()) {
    return time.toLocaleTimeString("en-GB", { ...parts, second: "2-digit" });
  }
  return time.toLocaleString("en-GB", { day: "numeric", month: "short", ...parts }).replace(",", "");
}

export function plural(count, one, many = `${one}s`) {
  return `${count}${SPACE}${count === 1 ? one : many}`;
}
