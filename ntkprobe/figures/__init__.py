"""One file per figure: `numbers(runs) -> DataFrame`, then `draw(numbers) -> Figure`."""
