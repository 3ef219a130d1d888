// Takes memory until the runtime gets no more.
package main

var taken [][]byte

func main() {
	for {
		piece := make([]byte, 16<<20)
		for at := range piece {
			piece[at] = 1
		}
		taken = append(taken, piece)
	}
}
