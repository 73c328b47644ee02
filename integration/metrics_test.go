package integration

import (
	"regexp"
	"strconv"
	"testing"
)

// TestMetrics finds in metrics what was done: the READs that faulted, and the frames by list as pagelists has them.
func TestMetrics(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, writeContent(m.path("file"), 1, 4<<20))
	m.ctl("trim")
	m.ctl("empty standby")
	readAll(t, m.path("file"))
	sample := func(name string) float64 {
		t.Helper()
		match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(readAll(t, m.path(".proc/metrics")))
		if match == nil {
			t.Fatalf("metrics has no %s", name)
		}
		v, err := strconv.ParseFloat(match[1], 64)
		must(t, err)
		return v
	}
	if n := sample(`memfs_faults_total{kind="pagefile"}`); n != 1024 {
		t.Errorf("%v hard faults, want 1024", n)
	}
	reads, writes := sample(`memfs_fuse_ops_duration_seconds_count{op="read"}`), sample(`memfs_fuse_ops_duration_seconds_count{op="write"}`)
	if hard := sample(`memfs_fault_duration_seconds_count{kind="pagefile"}`); hard == 0 || hard > reads || writes == 0 {
		t.Errorf("%v reads, %v of them hard faults, %v writes", reads, hard, writes)
	}
	if sum := sample(`memfs_fuse_ops_duration_seconds_sum{op="read"}`); sum <= 0 {
		t.Errorf("the reads took %v seconds", sum)
	}
	if n := sample("memfs_daemon_resident_bytes"); n < 4<<20 {
		t.Errorf("a resident size of %v bytes, but 4 MiB are in frames", n)
	}
	if n, want := sample("memfs_memory_bytes"), m.counters("meminfo").get(t, "MemTotal")*1024; n != float64(want) {
		t.Errorf("a memory of %v bytes, want %d", n, want)
	}
}
