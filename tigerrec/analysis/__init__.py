"""What finished runs say: tables, audits, report pages, benchmarks, comparisons."""
