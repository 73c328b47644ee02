package ctl

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"memfs/mm"
)

// exposition is a document in Prometheus' text format (version 0.0.4). In the JSON every sample is a record.
type exposition struct {
	d       *Doc
	name    string
	samples [][]Value
}

// family begins a metric: its help and type, for the samples that follow.
func (e *exposition) family(name, kind, help string) {
	e.name = "memfs_" + name
	e.d.Lines("", "# HELP "+e.name+" "+help, "# TYPE "+e.name+" "+kind)
}

// label is a name and a value.
type label struct{ name, value string }

// labelEscapes are those of the text format.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// sample adds a line of the metric, or with a suffix one of its histogram's.
func (e *exposition) sample(suffix string, v Value, labels ...label) {
	var line strings.Builder
	line.WriteString(e.name + suffix)
	for i, l := range labels {
		line.WriteByte("{,"[min(i, 1)])
		line.WriteString(l.name + `="` + labelEscapes.Replace(l.value) + `"`)
	}
	if len(labels) > 0 {
		line.WriteByte('}')
	}
	e.samples = append(e.samples, []Value{Word(line.String()), v})
	e.d.Raw(string(v.appendText([]byte(line.String()+" "), 0)))
}

func (e *exposition) one(name, kind, help string, v Value) {
	e.family(name, kind, help)
	e.sample("", v)
}

func (e *exposition) histogram(h *Histogram, of label) {
	var n uint64
	for i := range h.counts {
		n += h.counts[i].Load()
		bound := "+Inf"
		if i < len(histogramBounds) {
			bound = strconv.FormatFloat(histogramBounds[i].Seconds(), 'g', -1, 64)
		}
		e.sample("_bucket", Count(n), of, label{"le", bound})
	}
	e.sample("_sum", Micros(uint64(h.sum.Load()/1000)), of)
	e.sample("_count", Count(n), of)
}

// topClients is how many processes' working sets are told apart.
const topClients = 10

func metrics(m *Mount) *Doc {
	s := m.Snapshot()
	c := &s.Counters
	e := exposition{d: new(Doc)}
	bytes := func(pages uint64) Value { return Count(pages * mm.PageSize) }

	e.family("build_info", "gauge", "Versions of memfs and of Go.")
	e.sample("", Count(1), label{"version", m.Version}, label{"go", runtime.Version()})
	e.one("memory_bytes", "gauge", "What the mount may cost the host.", Count(s.Budget.Memory))
	if m.Resident != nil {
		e.one("daemon_resident_bytes", "gauge", "Memory of the daemon, frames included.", Count(m.Resident()))
	}
	e.family("frames", "gauge", "Frames by page list.")
	for _, l := range []struct {
		list string
		n    uint64
	}{
		{"zeroed", s.Zeroed}, {"free", s.Free}, {"standby", standby(&s)}, {"modified", s.Modified},
		{"modified_nowrite", s.ModifiedNoWrite}, {"transition", s.Transition}, {"active", s.Active}, {"bad", s.Bad},
		{"retired", s.Retired},
	} {
		e.sample("", Count(l.n), label{"list", l.list})
	}
	e.family("standby_frames", "gauge", "Standby frames by priority.")
	for p, n := range s.Standby {
		e.sample("", Count(n), label{"priority", strconv.Itoa(p)})
	}
	e.family("repurposed_total", "counter", "Standby pages that were taken for another use, by priority.")
	for p, n := range c.Repurposed {
		e.sample("", Count(n), label{"priority", strconv.Itoa(p)})
	}
	e.family("departures_total", "counter", "Pages that came to be in their store alone, by reason.")
	var repurposed uint64
	for _, n := range c.Repurposed {
		repurposed += n
	}
	e.sample("", Count(repurposed), label{"reason", "repurposed"})
	e.sample("", Count(c.PagesStolen), label{"reason", "stolen"})
	e.sample("", Count(c.PagesEmptied), label{"reason", "emptied"})
	e.sample("", Count(c.PagesLimited), label{"reason", "limited"})
	e.sample("", Count(c.DirectWrites), label{"reason", "unplaced"})
	e.one("trimmed_pages_total", "counter", "Pages that left a working set.", Count(c.PagesTrimmed))
	e.one("freed_pages_total", "counter", "Frames given back by truncate, punch and delete.", Count(c.PagesFreed))

	e.family("faults_total", "counter", "Pages that were made valid, by kind.")
	e.sample("", Count(c.DemandZeroFaults), label{"kind", "demand_zero"})
	e.sample("", Count(c.TransitionFaults), label{"kind", "transition"})
	e.sample("", Count(c.HardFaults), label{"kind", "pagefile"})
	e.one("collided_faults_total", "counter", "Faults that waited for another one's read.", Count(c.CollidedFaults))
	timings(&e, "fault_duration_seconds", "Time of READs that faulted, by the dearest kind of their pages.", "kind", m.FaultTimes)
	e.family("pagein_bytes_total", "counter", "Bytes read back from stores.")
	e.sample("", bytes(c.PagesInput), label{"tier", "pagefile"})
	e.family("pageout_bytes_total", "counter", "Bytes written to stores.")
	e.sample("", bytes(c.PagesOutput), label{"tier", "pagefile"})
	e.sample("", bytes(c.PagesCompressed), label{"tier", "compressed"})

	e.one("commit_bytes", "gauge", "Commit charge.", bytes(s.Commit))
	e.one("commit_limit_bytes", "gauge", "What can be charged.", bytes(s.CommitLimit))
	e.one("commit_peak_bytes", "gauge", "The highest commit charge there was.", bytes(s.CommitPeak))
	e.one("commit_refusals_total", "counter", "Charges refused.", Count(c.CommitRefusals))
	e.one("record_bytes", "gauge", "Memory of the manager's own records.", Count(s.RecordBytes))
	pageFileMetrics(&e, &s)
	e.one("compressed_bytes", "gauge", "Memory of compressed pages.", Count(s.Compressed.Memory))
	e.one("compressed_original_bytes", "gauge", "What these pages are uncompressed.", bytes(s.Compressed.Pages))

	e.family("working_set_bytes", "gauge", "Working sets: the host's copies of files, and the largest of the simulated processes.")
	e.sample("", bytes(s.HostPages), label{"client", "system_cache"})
	workingSetMetrics(&e, m)
	e.one("system_cache_limit_bytes", "gauge", "Above this the host's copies are trimmed.", bytes(s.HostLimit))
	e.family("pressure_stall_seconds_total", "counter", "Time lost for want of memory.")
	e.sample("", Micros(uint64(s.Some.Total.Microseconds())), label{"kind", "some"})
	e.sample("", Micros(uint64(s.Full.Total.Microseconds())), label{"kind", "full"})
	e.family("errors_total", "counter", "Pages that a store failed on, and WRITEs that were refused.")
	e.sample("", Count(c.ChecksumErrors), label{"kind", "checksum"})
	e.sample("", Count(c.ReadErrors), label{"kind", "read"})
	e.sample("", Count(c.WriteErrors), label{"kind", "write"})
	e.sample("", Count(c.RefusedWrites), label{"kind", "refused_write"})
	if m.Inodes != nil {
		used, most := m.Inodes()
		e.one("inodes", "gauge", "Inodes in use.", Count(used))
		e.one("inodes_limit", "gauge", "Most inodes.", Count(most))
	}
	timings(&e, "fuse_ops_duration_seconds", "Time of the host's requests, by operation.", "op", m.Operations)
	e.d.Records("samples", []Column{{Key: "metric"}, {Key: "value"}}, slices.Values(e.samples))
	return e.d
}

func timings(e *exposition, name, help, of string, timings func() []Timing) {
	if timings == nil {
		return
	}
	e.family(name, "histogram", help)
	for _, t := range timings() {
		e.histogram(t.Histogram, label{of, t.Name})
	}
}

func pageFileMetrics(e *exposition, s *mm.Snapshot) {
	for _, g := range []struct {
		name, help string
		of         func(*mm.PageFileInfo) uint64
	}{
		{"pagefile_used_bytes", "Slots in use.", func(f *mm.PageFileInfo) uint64 { return f.Used }},
		{"pagefile_size_bytes", "What the page file has grown to.", func(f *mm.PageFileInfo) uint64 { return f.Size }},
		{"pagefile_max_bytes", "What it may grow to.", func(f *mm.PageFileInfo) uint64 { return f.Max }},
	} {
		e.family(g.name, "gauge", g.help)
		for i := range s.PageFiles {
			f := &s.PageFiles[i]
			e.sample("", Count(g.of(f)*mm.PageSize), label{"number", strconv.Itoa(i)}, label{"file", f.Name})
		}
	}
}

func workingSetMetrics(e *exposition, m *Mount) {
	if m.Processes == nil {
		return
	}
	type client struct {
		name  string
		bytes uint64
	}
	var all []client
	for _, p := range m.Processes() {
		all = append(all, client{p.Name, p.MemoryInfo().WorkingSet})
	}
	slices.SortStableFunc(all, func(a, b client) int { return -cmp.Compare(a.bytes, b.bytes) })
	for _, p := range all[:min(len(all), topClients)] {
		e.sample("", Count(p.bytes), label{"client", fmt.Sprintf("process:%s", p.name)})
	}
}
