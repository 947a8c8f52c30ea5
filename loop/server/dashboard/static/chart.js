// Draws what was captured by day; without this script the page shows the table of the same figures.
"use strict";

function drawChart() {
  const place = document.getElementById("chart");
  const content = document.getElementById("chart-content");
  if (place === null || content === null || typeof uPlot === "undefined") return;
  const { currency, places, days, volumes } = JSON.parse(content.textContent);
  const readout = document.getElementById("readout");
  const HEIGHT = 220;

  const amount = new Intl.NumberFormat("en", { minimumFractionDigits: places, maximumFractionDigits: places });
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const dayOf = (seconds) =>
    new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const total = volumes.reduce((sum, each) => sum + each, 0);

  function read(plot) {
    const at = plot.cursor.idx;
    readout.textContent =
      at === null || at === undefined
        ? `${amount.format(total)} ${currency} in ${days.length} days`
        : `${dayOf(days[at])}: ${amount.format(volumes[at])} ${currency}`;
  }

  function options() {
    const font = `12px ${colour("--face") || "sans-serif"}`;
    const axis = { stroke: colour("--soft"), font, ticks: { show: false }, border: { show: false } };
    return {
      width: place.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: { x: { range: (_plot, low, high) => [low - 43200, high + 43200] }, y: { range: (_plot, _low, high) => [0, high * 1.05 || 1] } },
      axes: [
        { ...axis, grid: { show: false }, values: (_plot, splits) => splits.map(dayOf), space: 64, size: 28, incrs: [1, 2, 7, 14].map((each) => each * 86400) },
        { ...axis, grid: { stroke: colour("--line"), width: 1 }, values: (_plot, splits) => splits.map((each) => short.format(each)), size: 48, space: 44 },
      ],
      series: [{}, { fill: colour("--accent"), width: 0, paths: uPlot.paths.bars({ size: [0.7, 28], radius: 0.15 }), points: { show: false } }],
      hooks: { setCursor: [read] },
    };
  }

  let plot = null;
  function draw() {
    if (plot !== null) plot.destroy();
    plot = new uPlot(options(), [days, volumes], place);
    read(plot);
  }

  draw();
  document.getElementById("chart-table").open = false;
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

drawChart();
document.addEventListener("loop:shown", drawChart);
