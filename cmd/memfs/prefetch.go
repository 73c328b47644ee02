package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"memfs/fs/ctl"
)

// prefetchOptions are what the verb prefetch was given.
type prefetchOptions struct {
	list string // the file with a list of faults; - is standard input
}

func newPrefetchCommand() *cobra.Command {
	var o prefetchOptions
	c := &cobra.Command{
		Use:   "prefetch [flags] PATH [OFF [LEN]]",
		Short: "Bring pages back into memory before they are touched",
		Long: "prefetch reads pages back from the page file, as far as frames are free: of a file, of all files below a directory,\n" +
			"or LEN bytes from OFF on. A list of faults, which the control file faults of a file shows after a run that was\n" +
			"recorded, is replayed in its order: from the file that --list names, or from standard input if that is a file that\n" +
			"begins as a list, as in the last example. Two numbers a line, offset and length in bytes, will do. The answer\n" +
			"says how many pages came.",
		Example: "  memfs prefetch /tmp/m/app.db\n  memfs prefetch /tmp/m/app.db 1M 64K\n" +
			"  echo 'faults start' > /tmp/m/.proc/files/app.db/ctl; app; cat /tmp/m/.proc/files/app.db/faults > warm.list\n" +
			"  memfs prefetch /tmp/m/app.db < warm.list",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("prefetch: no path given; usage: %s", c.UseLine())
			}
			if len(args) > 3 {
				return usageError("prefetch takes a path, OFF and LEN, but %d arguments were given; usage: %s", len(args), c.UseLine())
			}
			return somePaths(c, args[:1])
		},
		RunE: func(c *cobra.Command, args []string) error {
			list, given, err := o.faults(c.InOrStdin(), len(args) > 1)
			if err != nil {
				return err
			}
			if given && len(args) > 1 {
				return usageError("prefetch: --list says what to prefetch, and so do OFF and LEN: give one of them")
			}
			return eachPath(args[:1], func(p *place) error {
				if given {
					return p.replay(c.OutOrStdout(), list)
				}
				return p.steer(c.OutOrStdout(), strings.Join(append([]string{"prefetch"}, args[1:]...), " "), longTimeout, false)
			})
		},
	}
	c.Flags().StringVar(&o.list, "list", "", "replay the faults in this `FILE`; - is standard input")
	return c
}

// faults reads the list of faults, if one is given. Standard input is one without --list if it is a file that begins as a list: it
// may be the script that we are called in, which is left as it is. A pipe is none, for it may be one that nobody will ever write
// to. ranged says that what to prefetch is known already.
func (o *prefetchOptions) faults(stdin io.Reader, ranged bool) (list []byte, given bool, err error) {
	name := o.list
	switch f, isFile := stdin.(*os.File); {
	case name != "" && name != "-":
		list, err = os.ReadFile(name)
	case name == "-":
		list, err = io.ReadAll(stdin)
	case ranged || !isFile || !isRegular(f):
		return nil, false, nil
	default:
		name = "-"
		if list, err = peek(f); err == nil && !new(ctl.Replay).Takes(list) {
			if len(bytes.TrimSpace(list)) > 0 {
				printWarning("standard input is no list of faults: prefetching the whole")
			}
			return nil, false, nil
		}
	}
	if name == "-" {
		name = "standard input"
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s: %s", name, reason(err))
	}
	if n, err := ctl.CountFaults(list); err != nil {
		return nil, false, fmt.Errorf("%s: %w", name, err)
	} else if n == 0 {
		return nil, false, fmt.Errorf("%s: no fault in it: want lines of an offset and a length in bytes", name)
	}
	return list, true, nil
}

// peek reads what is left of a file, which goes on being left.
func peek(f *os.File) ([]byte, error) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, at, math.MaxInt64-at))
}

func isRegular(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// replay has a list of faults prefetched.
func (p *place) replay(w io.Writer, list []byte) error {
	if folder, ok := p.process(); ok && folder != "files" {
		return fmt.Errorf("%s: not a file", p.path)
	}
	dir, prefix, err := p.controls()
	if err != nil {
		return err
	}
	if prefix != "" {
		return fmt.Errorf("%s: a directory; a list of faults is of one file", p.path)
	}
	answers, err := p.tell(dir+"/ctl", strings.TrimSuffix(string(list), "\n"), longTimeout)
	if err != nil {
		return err
	}
	var pages uint64
	for answer := range strings.Lines(answers) { // one for each piece of the list
		var n uint64
		if _, err := fmt.Sscanf(answer, "OK prefetched=%d", &n); err != nil {
			_, text, _ := strings.Cut(strings.TrimPrefix(answer, "ERR "), " ") // after the name of the errno
			return fmt.Errorf("%s: prefetch: %s", p.path, strings.TrimSpace(text))
		}
		pages += n
	}
	_, err = fmt.Fprintf(w, "OK prefetched=%d\n", pages)
	return err
}
