package ctl

import (
	"regexp"
	"strings"
	"testing"
)

// TestMetrics proves that metrics is what Prometheus reads: every family has its help and type once and before its samples,
// no sample is there twice, names and types follow the conventions, and a histogram's buckets grow up to its count.
func TestMetrics(t *testing.T) {
	mount, _ := testMount()
	text := render(metrics(mount), false)
	sample := regexp.MustCompile(`^([a-z][a-z0-9_]*)(\{[a-z]+="(?:[^"\\\n]|\\.)*"(?:,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? ([0-9]+(?:\.[0-9]+)?)$`)
	kinds, seen := map[string]string{}, map[string]bool{}
	var family, help, last string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "# HELP "):
			if help = words[2]; len(words) < 5 || !strings.HasSuffix(line, ".") {
				t.Errorf("no help: %s", line)
			}
		case strings.HasPrefix(line, "# TYPE "):
			family = words[2]
			if kinds[family] != "" || help != family {
				t.Errorf("%s: a second time, or without its help before it", family)
			}
			kinds[family] = words[3]
			if counter := strings.HasSuffix(family, "_total"); counter != (words[3] == "counter") || !strings.HasPrefix(family, "memfs_") {
				t.Errorf("%s is a %s", family, words[3])
			}
		default:
			m := sample.FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("not a sample: %s", line)
			}
			name := m[1]
			if kinds[family] == "histogram" {
				name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			}
			if name != family || seen[m[1]+m[2]] {
				t.Errorf("out of its family %s, or a second time: %s", family, line)
			}
			seen[m[1]+m[2]] = true
			last = line
		}
	}
	for _, want := range []string{
		`memfs_frames{list="active"} 8006`, `memfs_standby_frames{priority="3"} 103`, `memfs_faults_total{kind="pagefile"} 20004`,
		`memfs_pagefile_used_bytes{number="0",file="/var/tmp/memfs page\nfile"} 3768320`,
		`memfs_fault_duration_seconds_bucket{kind="pagefile",le="3e-05"} 0`,
		`memfs_fault_duration_seconds_bucket{kind="pagefile",le="0.0001"} 1`,
		`memfs_fault_duration_seconds_bucket{kind="pagefile",le="+Inf"} 2`,
		`memfs_fault_duration_seconds_sum{kind="pagefile"} 2.000070`, `memfs_fault_duration_seconds_count{kind="pagefile"} 2`,
		`memfs_pressure_stall_seconds_total{kind="full"} 0.089000`, `memfs_daemon_resident_bytes 80740352`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("metrics lacks %s", want)
		}
	}
	if n := strings.Count(text, "\n"); last == "" || n > 1000 {
		t.Errorf("metrics has %d lines", n)
	}
}
