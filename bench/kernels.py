"""The kernels beside their rivals, as rows of JSON: the same cases as `kernel-distill bench`.

python bench/kernels.py [--quick] [--cuda] [NAME ...] >> bench/results/cpu.jsonl
"""

import sys

from _rows import emit

from kernel_distill._bench.case import Bench
from kernel_distill._bench.machine import describe_machine, measure_ceilings
from kernel_distill._bench.run import choose_cases, choose_device, run_cases


def main(arguments):
    options = {"--quick", "--cuda"} & set(arguments)
    cases = choose_cases([name for name in arguments if name not in options])
    bench = Bench(choose_device("cuda" if "--cuda" in options else "cpu"), "--quick" in options)
    ceilings = measure_ceilings(bench.device, quick=bench.quick)
    device = describe_machine(bench.device)["device"]
    emit("ceilings", device=device, copy=ceilings.copy, products=ceilings.products, exps=ceilings.exps)
    for _, rows in run_cases(bench, cases, ceilings):
        for row in rows:
            emit("kernel", device=device, **row)


if __name__ == "__main__":
    main(sys.argv[1:])
