package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newTopCommand() *cobra.Command {
	interval, rounds := 2*time.Second, 0
	c := &cobra.Command{
		Use:   "top [flags] [PATH]",
		Short: "Watch a mount: page lists, faults, processes",
		Long: "top shows where the frames of a mount are, how many pages move a second, and its processes, and shows it again\n" +
			"every few seconds until it is interrupted. On a terminal it clears the screen before; else the views follow\n" +
			"each other.",
		Example: "  memfs top /tmp/m\n  memfs top -n 1 /tmp/m",
		Args:    onePath,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case interval < 100*time.Millisecond:
				return usageError("--delay %v: at least 100ms", interval)
			case rounds < 0:
				return usageError("--rounds %d: not a number of views", rounds)
			}
			p, err := locate(here(args))
			if err != nil {
				return err
			}
			return runTop(c.OutOrStdout(), p, interval, rounds)
		},
	}
	c.Flags().DurationVarP(&interval, "delay", "d", interval, "time between two views")
	c.Flags().IntVarP(&rounds, "rounds", "n", rounds, "show so many views, then end; 0 is until interrupted")
	return c
}

func runTop(w io.Writer, p *place, interval time.Duration, rounds int) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(stop)
	height := screenHeight(w)
	var last *view
	for round := 1; ; round++ {
		v, err := p.view()
		if err != nil {
			return err
		}
		text := v.render(p.path, last)
		if height > 0 {
			lines := strings.SplitAfter(text, "\n")
			text = "\x1b[H\x1b[J" + strings.Join(lines[:min(len(lines), height-1)], "")
		} else if round > 1 {
			text = "\n" + text
		}
		if _, err := io.WriteString(w, text); err != nil {
			if errors.Is(err, unix.EPIPE) {
				return nil
			}
			return err
		}
		if round == rounds {
			return nil
		}
		last = v
		select {
		case <-stop:
			return nil
		case <-time.After(interval):
		}
	}
}

// screenHeight is the number of lines of a terminal, 0 if w is none.
func screenHeight(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return max(int(size.Row), 2)
}

// view is what top shows, as of one moment.
type view struct {
	at        time.Time
	mem       meminfo
	counters  map[string]float64
	processes struct {
		Processes []topProcess `json:"processes"`
	}
}

type topProcess struct {
	PID        uint64 `json:"pid"`
	UID        uint64 `json:"uid"`
	Arch       string `json:"arch"`
	DEP        string `json:"dep"`
	WorkingSet uint64 `json:"working_set_bytes"`
	Private    uint64 `json:"private_bytes"`
	Name       string `json:"name"`
	Folder     string `json:"folder"`
}

func (p *place) view() (*view, error) {
	v := &view{at: time.Now()}
	for name, into := range map[string]any{"meminfo.json": &v.mem, "vmstat.json": &v.counters, "ps.json": &v.processes} {
		if err := p.readJSON(name, into); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// rates are the counters of vmstat that top shows per second.
var rates = []struct{ label, counter string }{
	{"faults", "pgfault"}, {"hard", "pgmajfault"}, {"pages in", "pages_input"}, {"pages out", "pages_output"},
}

const topBar = 60 // characters

func (v *view) render(path string, last *view) string {
	var b bytes.Buffer
	m := &v.mem
	fmt.Fprintf(&b, "memfs %s   %s   memory %s, commit %s of %s, page file %s of %s\n", path, v.at.Format(time.TimeOnly),
		roundSize(m.Total), roundSize(m.Commit), roundSize(m.CommitLimit), roundSize(m.SwapTotal-min(m.SwapTotal, m.SwapFree)),
		roundSize(m.SwapTotal))
	lists := []struct {
		letter byte
		name   string
		bytes  uint64
	}{
		{'A', "active", m.Active}, {'S', "standby", m.Standby}, {'M', "modified", m.Modified + m.NoWrite},
		{'T', "under I/O", m.Transition}, {'.', "free", m.Zeroed + m.Free},
	}
	bar := make([]byte, 0, topBar)
	var sum uint64
	for _, l := range lists {
		sum += l.bytes
		for uint64(len(bar))*max(m.Frames, 1) < sum*topBar && len(bar) < topBar {
			bar = append(bar, l.letter)
		}
	}
	fmt.Fprintf(&b, "frames %8s [%-*s]\n", roundSize(m.Frames), topBar, bar)
	for i, l := range lists {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %s", l.name, roundSize(l.bytes))
	}
	fmt.Fprintf(&b, "; host cache %s of %s; records %s\n", roundSize(m.Host), roundSize(m.HostLimit), roundSize(m.Records))
	for i, r := range rates {
		if i > 0 {
			b.WriteString(", ")
		}
		n, unit := v.counters[r.counter], ""
		if last != nil {
			n, unit = (n-last.counters[r.counter])/v.at.Sub(last.at).Seconds(), "/s"
		}
		fmt.Fprintf(&b, "%s %.0f%s", r.label, n, unit)
	}
	b.WriteString("\n\n")
	fmt.Fprintf(&b, "%6s %6s %-5s %-15s %10s %10s %-15s %s\n", "Pid", "Uid", "Arch", "DEP", "WorkingSet", "Private", "Name", "Folder")
	all := v.processes.Processes
	slices.SortStableFunc(all, func(p, q topProcess) int { return compare(q.WorkingSet, p.WorkingSet) })
	for _, p := range all {
		fmt.Fprintf(&b, "%6d %6d %-5s %-15s %10s %10s %-15s %s\n", p.PID, p.UID, p.Arch, p.DEP, roundSize(p.WorkingSet),
			roundSize(p.Private), printable(p.Name), p.Folder)
	}
	return b.String()
}
